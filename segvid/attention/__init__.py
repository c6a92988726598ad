"""Attention mechanisms: modules on `(B, C, *grid)` that know nothing of classes, labels or Lightning."""
