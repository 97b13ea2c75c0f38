"""What models take in memory, and who was promised how much of it."""
