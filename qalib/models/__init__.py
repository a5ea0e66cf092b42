"""Reader models, which map a batch to start and end logits over the passage, and their files."""
