"""The stage that compiles DeepGEMM's kernels."""
