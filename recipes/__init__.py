"""Runnable experiments, each with a certificate."""
