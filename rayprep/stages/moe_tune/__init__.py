"""The stage that tunes the fused-MoE kernel and writes the config files that a server reads."""
