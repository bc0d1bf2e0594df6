"""Whether DeepGEMM is used."""

ENABLE_JIT_DEEPGEMM = True
