"""The one GPU architecture whose modules are known here, by the names that NVIDIA and the libraries have for it."""

HOPPER = "sm_90"
"""The compute capability, as a signature has it."""
HOPPER_ARCH = "9.0a"
"""As FlashInfer and tvm_ffi are told of it. It is what flashinfer makes of a visible sm_90 GPU by itself
(compilation_context.py, 0.6.14), and what a server of SGLang sets (`set_cuda_arch`, 0.5.16): the folder (`90a`) and the
flags are the same, and the build needs no GPU."""
