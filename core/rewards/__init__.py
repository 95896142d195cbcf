"""Rewards that score generated samples."""
