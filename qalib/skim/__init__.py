"""Skimming: leaving out the parts of a passage that do not matter for its question."""
