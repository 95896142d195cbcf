"""Distillation objectives, one file per paper."""
