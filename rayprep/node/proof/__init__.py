"""The proof: a server starts once more, and nothing is left to compile."""
