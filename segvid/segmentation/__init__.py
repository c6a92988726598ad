"""Semantic segmentation: heads, task, losses and metrics."""
