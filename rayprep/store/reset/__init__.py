"""The removal of caches: what it selects, what it did."""
