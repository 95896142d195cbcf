"""Training data: surfaces as voxels, shards of them, batches."""
