"""Sparse voxels: tensors on them, and the layers that work there."""
