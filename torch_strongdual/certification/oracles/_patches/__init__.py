"""Patches of convolutional branches as the rows of a dense one."""
