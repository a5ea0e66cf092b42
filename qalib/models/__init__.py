"""Readers: a batch in, start and end logits over the passage out."""
