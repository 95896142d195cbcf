"""Checkpoints of Wan 2.1 and of the few-step students made from it, in their own formats."""
