"""The stage that builds FlashInfer's modules."""
