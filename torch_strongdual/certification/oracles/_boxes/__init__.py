"""Branch and bound over boxes: compiled and batched cells, trees, forests, and the search over targets."""
