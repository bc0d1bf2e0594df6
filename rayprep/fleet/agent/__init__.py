"""The actor that works on one host, and what it is told and answers."""
