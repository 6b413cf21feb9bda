"""Optimizers that minimise loss plus path penalty."""
