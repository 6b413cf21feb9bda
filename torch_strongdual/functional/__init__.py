"""Pure functions of tensors: path penalties, their gradients and proximal maps, stacked branches."""
