"""Data: the example schema, where examples come from, and how they become batches."""
