"""The polynomial sandwich: one-sided quartics, Gram matrices, majorants, their search."""
