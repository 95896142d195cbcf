"""Bundled protein models."""
