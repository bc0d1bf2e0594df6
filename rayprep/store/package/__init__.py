"""A package of caches: what it lists, the archive, the way out of one store and into another."""
