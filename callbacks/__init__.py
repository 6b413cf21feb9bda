"""Callbacks for Lightning."""
