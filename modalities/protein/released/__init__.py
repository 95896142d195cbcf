"""Proteina's released checkpoints, and those of students distilled from them."""
