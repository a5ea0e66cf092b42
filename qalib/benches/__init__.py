"""What takes how long, always against a fair baseline in the same run: ratios, not seconds."""
