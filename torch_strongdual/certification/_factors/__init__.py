"""Two-layer networks as products of factors: a stationary point in machine precision, and its derivatives."""
