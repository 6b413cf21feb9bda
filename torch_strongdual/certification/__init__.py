"""Certificates of global optimality."""
