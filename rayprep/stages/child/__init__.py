"""What the stages' child processes share: how they are run, the lines they speak, why they failed."""
