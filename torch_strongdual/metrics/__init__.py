"""Metrics for torchmetrics."""
