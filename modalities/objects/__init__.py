"""A world of objects as signed distance functions: their pictures, captions, voxels and surfaces."""
