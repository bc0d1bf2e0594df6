"""What people and tools see of a run while it goes on, and afterwards in its log."""
