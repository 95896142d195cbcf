"""Protein backbones: chains of CA atoms and what can be said of them."""
