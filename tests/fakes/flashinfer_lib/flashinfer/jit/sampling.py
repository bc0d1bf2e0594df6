"""As in the real library, its generator is here and not in `flashinfer.jit` itself."""

from flashinfer.jit import JitSpec, generated


def gen_sampling_module() -> JitSpec:
    return generated("sampling")
