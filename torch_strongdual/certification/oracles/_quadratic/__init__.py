"""The quadratic relaxation: majorants and their search."""
