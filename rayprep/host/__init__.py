"""One machine: its files, locks, processes, GPUs and tools."""
