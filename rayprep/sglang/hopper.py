"""The one GPU architecture whose modules are known here, by the names that NVIDIA and the libraries have for it."""

HOPPER = "sm_90"
"""The compute capability, as a signature has it."""
HOPPER_ARCH = "9.0a"
"""As FlashInfer and tvm_ffi are told of it; `a` is for instructions of this architecture alone."""
