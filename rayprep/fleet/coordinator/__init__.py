"""The actor that gathers heartbeats and results, and holds the leases."""
