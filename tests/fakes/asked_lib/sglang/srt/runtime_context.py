"""Nothing is published before 0.5.17."""
