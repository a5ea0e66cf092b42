"""Data: the example schema, the sources of examples, and how they become batches."""
