"""Phases of optimisation to a certificate: descent, refits of layers, and the loop that takes turns."""
