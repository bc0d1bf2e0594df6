"""Stands in for flashinfer 0.6.14: the same folders, locks and ninja commands, with a copy for a compiler."""
