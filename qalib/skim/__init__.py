"""Block skimming: an encoder that prunes passage blocks unlikely to hold the answer."""
