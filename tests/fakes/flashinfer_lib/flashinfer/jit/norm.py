"""As in the real library, its generator is here and not in `flashinfer.jit` itself."""

from flashinfer.jit import CSRC, JitSpec


def gen_norm_module() -> JitSpec:
    return JitSpec("norm", CSRC / "norm.cu")
