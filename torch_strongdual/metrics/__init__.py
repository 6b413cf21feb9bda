"""Metrics for torchmetrics."""

from torch_strongdual.metrics.duality_gap import DualityGap as DualityGap
