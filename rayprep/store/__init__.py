"""One profiles root: its caches' files, entries, completions, markers and snapshot."""
