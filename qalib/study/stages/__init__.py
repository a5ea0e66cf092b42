"""The stages of the study by topic: expensive computations that run once and are cached."""
