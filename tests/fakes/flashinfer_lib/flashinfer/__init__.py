"""Stands in for flashinfer: the same folders, locks and ninja commands, with a copy for a compiler.

The folders are of 0.6.14, `build` takes no lock unless asked, as since 0.6.17, and with FAKE_NEWER the generators are
those of 0.7.1. FAKE_LOCK_LOG is a file that hears who waits for a lock.
"""
