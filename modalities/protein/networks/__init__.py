"""Proteina's transformer over CA atoms, with its parameter names."""
