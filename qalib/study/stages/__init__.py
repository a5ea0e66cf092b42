"""Stages of the study by topic: what is expensive, and therefore computed once and cached."""
