"""The stage that compiles the decode step with TorchInductor."""
