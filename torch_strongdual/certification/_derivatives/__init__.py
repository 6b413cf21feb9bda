"""Derivatives of the optimal network: cone programs of one output, stationary points of factors of several."""
