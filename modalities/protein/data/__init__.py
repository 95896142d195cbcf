"""Chains of the Protein Data Bank as training data: the set that is bundled, and anybody's files."""
