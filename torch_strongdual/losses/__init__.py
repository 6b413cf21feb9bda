"""Losses, their conjugates and dual variables."""
