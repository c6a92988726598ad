"""Attention mechanisms: modules from `(B, C, *grid)` to `(B, C, *grid)` that know nothing of classes, labels or Lightning."""
