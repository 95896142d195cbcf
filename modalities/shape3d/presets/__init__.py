"""Bundled models of 3D objects."""
