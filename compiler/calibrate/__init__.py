"""What is found out from data: ranges, and later thresholds and exit parameters."""
