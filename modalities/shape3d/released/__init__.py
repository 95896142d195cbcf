"""Checkpoints in the format of TRELLIS (arXiv 2412.01506)."""
