"""Paths, denoisers, objectives and training: tensors only, no modality."""
