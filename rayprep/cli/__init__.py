"""The command line: parses, calls, prints, exits. Heavier imports wait until a command runs."""
