"""Ask the installed SGLang what one rank of a server computes: `python -P inventory.py FLAG...` prints one JSON line.

The flags are resolved by SGLang's own parser, and the model's own class is built without a weight, on torch's meta
device, as one rank of a process group that is not there. What is printed are facts, of `rayprep/sglang/inventory.py`'s
fields; what they mean for a kernel library is decided there. `{"refused": ...}` is what SGLang itself says to such a
model or flags, `{"unknown": ...}` is why it could not be asked.

This file imports nothing of rayprep. Of SGLang it leans on what its own loader, scheduler and model runner call, and
hands each function, by name, those arguments that it takes. What it asks was tried with sglang 0.5.16 to 0.5.23; a
release in which a part is gone, or that has a new part that must be given, is an unknown.
"""

import argparse
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

_SETTINGS = (
    *("attention_backend", "prefill_attention_backend", "decode_attention_backend", "sampling_backend"),
    *("kv_cache_dtype", "moe_runner_backend", "moe_a2a_backend", "fp8_gemm_runner_backend", "quantization"),
    *("chunked_prefill_size", "enable_flashinfer_allreduce_fusion", "flashinfer_allreduce_fusion_backend"),
    *("disable_shared_experts_fusion", "speculative_algorithm"),
)
_LATENT = ("kv_lora_rank", "qk_rope_head_dim")
_WEIGHTS = ("weight", "qweight", "weight_packed")
_SIZES = ("tp", "pp")
_FAKE = "fake"
_LONGEST = 500
"""Characters of what SGLang says."""


class Unknown(Exception):
    """The answer would not be SGLang's own."""


class NoSuchFlags(Exception):
    """SGLang's parser does not take the flags, and says why."""


def called(function: Callable[..., Any], have: Mapping[str, object]) -> Any:  # noqa: ANN401 - SGLang's, untyped
    """Call a function of SGLang's with those of `have` that it takes. Raises Unknown where it wants another."""
    parameters = inspect.signature(function).parameters
    needed = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    if missing := [name for name in needed if name not in have]:
        raise Unknown(f"{function.__name__} of this release wants {missing[0]!r}")
    return function(**{name: value for name, value in have.items() if name in parameters})


class Asked:
    """One server's flags, as this release resolves them."""

    def __init__(self, words: Sequence[str]) -> None:
        from sglang.srt.server_args import prepare_server_args

        def refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
            raise NoSuchFlags(message)

        setattr(argparse.ArgumentParser, "error", refuse)  # noqa: B010 - it would print its usage, and exit
        self.args = prepare_server_args(list(words))
        if hasattr(self.args, "resolve_once"):
            self.args.resolve_once()

    def setting(self, name: str) -> Any:  # noqa: ANN401 - SGLang's, untyped
        """Return the resolved value: from 0.5.19 on the object itself keeps what the operator gave."""
        if hasattr(self.args, "resolved_dict"):
            return self.args.resolved_dict().get(name)
        return getattr(self.args, name, None)

    def size(self, name: str) -> int:
        """Return a parallel size, 1 where this release has none of the name."""
        return int(self.setting(name) or 1)

    def publish(self) -> None:
        """Have SGLang know the flags, as its scheduler does before it makes a worker."""
        from sglang.srt import runtime_context

        if hasattr(runtime_context, "publish"):
            spawned = getattr(runtime_context, "SpawnRanks", None)
            ranks = {"ranks": spawned(world_rank=0, gpu_id=0)} if spawned else {}
            runtime_context.publish(self.args, role="scheduler", **ranks)
        else:
            from sglang.srt.server_args import set_global_server_args_for_scheduler

            set_global_server_args_for_scheduler(self.args)


@contextmanager
def cuda_is_meta() -> Iterator[None]:
    """Put what a layer asks for on `cuda` by name on the meta device too: no CUDA context, no memory."""
    import torch
    from torch.overrides import TorchFunctionMode

    def is_cuda(device: object) -> bool:
        if isinstance(device, int):  # a GPU's number
            return True
        return isinstance(device, str | torch.device) and torch.device(device).type == "cuda"

    class CudaIsMeta(TorchFunctionMode):
        def __torch_function__(
            self,
            func: Callable[..., object],
            types: Sequence[type],
            args: tuple[Any, ...] = (),
            kwargs: Mapping[str, object] | None = None,
        ) -> object:
            named = dict(kwargs or {})
            name = getattr(func, "__name__", "")
            if is_cuda(named.get("device")):
                named["device"] = "meta"
            elif name == "cuda":
                return args[0].to("meta")
            elif name == "to" and len(args) > 1 and is_cuda(args[1]) and not isinstance(args[1], int):
                args = (args[0], "meta", *args[2:])
            return func(*args, **named)

    with CudaIsMeta():
        yield


def form_groups(asked: Asked, model_config: object) -> None:
    """Make SGLang's process groups of ranks that do not exist."""
    import torch.distributed
    from sglang.srt.distributed import bootstrap, parallel_state
    from torch.testing._internal.distributed import fake_pg

    world = asked.size("tp_size") * asked.size("pp_size")
    torch.distributed.init_process_group(backend=_FAKE, store=fake_pg.FakeStore(), rank=0, world_size=world)
    make_group = torch.distributed.new_group
    # SGLang makes one of gloo beside each of its groups, which would wait for its peers.
    torch.distributed.new_group = lambda ranks=None, *_, **__: make_group(ranks, backend=_FAKE)
    parallel_state.set_custom_all_reduce(False)
    have = {
        "backend": _FAKE,
        "dist_init_method": _FAKE,
        "server_args": asked.args,
        "model_config": model_config,
        "gpu_id": 0,
        "tp_rank": 0,
        "pp_rank": 0,
        "tp_size": asked.size("tp_size"),
        "pp_size": asked.size("pp_size"),
        "attn_dp_size": asked.size("dp_size") if asked.setting("enable_dp_attention") else 1,
        "attn_cp_size": asked.size("attn_cp_size"),
        "moe_ep_size": asked.size("ep_size"),
        "moe_dp_size": asked.size("moe_dp_size"),
        "dcp_size": asked.size("dcp_size"),
    }
    with cuda_is_meta():
        called(bootstrap._init_parallel_groups, have)
    if hasattr(bootstrap, "init_layer_runtime"):
        bootstrap.init_layer_runtime(model_config=model_config)
    for name in _SIZES:
        built = getattr(parallel_state, f"get_{name}_group")().world_size
        if built != asked.size(f"{name}_size"):
            raise Unknown(f"a group of {name} has {built} ranks in place of {asked.size(f'{name}_size')}")
    if hasattr(parallel_state, "get_moe_ep_group"):
        experts = parallel_state.get_moe_ep_group().world_size
        if experts != asked.size("ep_size"):
            raise Unknown(f"a group of experts has {experts} ranks in place of {asked.size('ep_size')}")


def choose_kernels(asked: Asked) -> None:
    """Have SGLang's layers know which kernels the flags mean, as its scheduler does."""
    from sglang.srt.layers.moe import initialize_moe_config
    from sglang.srt.layers.quantization.fp4_utils import initialize_fp4_gemm_config
    from sglang.srt.layers.quantization.fp8_utils import initialize_fp8_gemm_config

    for initialize in (initialize_moe_config, initialize_fp8_gemm_config, initialize_fp4_gemm_config):
        called(initialize, {"server_args": asked.args})


def build(model_config: Any) -> tuple["Module", Any]:  # noqa: ANN401 - SGLang's, untyped
    """Build the model as SGLang's loader does, without a weight. Returns its quantisation as well.

    Raises:
        Unknown: it is of another class than the config names, or a part of it is not on the meta device.
    """
    import torch
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.model_loader import loader
    from sglang.srt.model_loader.utils import set_default_torch_dtype

    load_config = LoadConfig(load_format="dummy")
    quantization = loader._get_quantization_config(model_config, load_config)
    with set_default_torch_dtype(model_config.dtype), cuda_is_meta(), torch.device("meta"):
        model: Module = loader._initialize_model(model_config, load_config, quantization)
    named = (model_config.hf_config.architectures or [""])[0]
    if type(model).__name__ != named:
        raise Unknown(f"SGLang has {type(model).__name__} for {named}")
    if elsewhere := [name for name, weight in model.named_parameters() if not weight.is_meta]:
        raise Unknown(f"{elsewhere[0]} is not on the meta device")
    return model, quantization


def kernels_of(model: "Module") -> dict[str, list[dict[str, object]]]:
    """List the linear layers, experts and attention of a model, each with how many there are of it, in their order.

    Raises:
        Unknown: a layer has none of the weights that are known here.
    """
    from sglang.srt.layers.linear import LinearBase
    from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
    from sglang.srt.layers.radix_attention import RadixAttention

    kinds: dict[str, dict[str, dict[str, object]]] = {"linears": {}, "experts": {}, "attention": {}}

    def add(kind: str, facts: dict[str, object]) -> None:
        known = kinds[kind].setdefault(json.dumps(facts), {"count": 0, **facts})
        known["count"] = int(str(known["count"])) + 1

    for path, layer in model.named_modules():
        if isinstance(layer, LinearBase):
            add("linears", linear_facts(path, layer))
        elif isinstance(layer, FusedMoE):
            add("experts", expert_facts(path, layer))
        elif isinstance(layer, RadixAttention):
            add("attention", attention_facts(layer))
    return {kind: list(facts.values()) for kind, facts in kinds.items()}


def linear_facts(path: str, layer: Any) -> dict[str, object]:  # noqa: ANN401 - SGLang's, untyped
    """Return one linear layer's facts; `n` and `k` of its weight [N, K] as it is stored."""
    method = layer.quant_method
    weight = next((found for name in _WEIGHTS if (found := getattr(layer, name, None)) is not None), None)
    if weight is None:
        raise Unknown(f"{path}, a {type(layer).__name__}, has no weight that is known here")
    scheme = getattr(layer, "scheme", None)  # of compressed-tensors, whose method has none of the two facts
    kernel = getattr(method, "w8a8_block_fp8_linear", None) or getattr(scheme, "w8a8_block_fp8_linear", None)
    in_blocks = getattr(method, "block_quant", False) or getattr(scheme, "weight_block_size", None) is not None
    return {
        "name": path.rpartition(".")[2],
        "method": type(method).__name__,
        "kernel": getattr(kernel, "__name__", None) or (type(kernel).__name__ if kernel is not None else None),
        "block_quant": bool(in_blocks),
        "n": weight.shape[0],
        "k": weight.numel() // weight.shape[0],  # a convolution's has three dimensions
        "dtype": short(weight),
    }


def expert_facts(path: str, layer: Any) -> dict[str, object]:  # noqa: ANN401 - SGLang's, untyped
    """Return one fused MoE layer's facts; shapes as its parameters are stored."""
    parameters = dict(layer.named_parameters(recurse=False))
    first = next((weight for name, weight in parameters.items() if name.startswith("w13_weight")), None)
    if first is None:
        raise Unknown(f"{path}, a {type(layer).__name__}, has no w13 weight")
    method, config = layer.quant_method, layer.moe_runner_config
    quantization = getattr(method, "quant_config", None)
    scheme = getattr(layer, "scheme", None) or getattr(method, "scheme", None)
    runner = getattr(method, "runner", None) or getattr(scheme, "runner", None)
    block = getattr(quantization, "weight_block_size", None) or getattr(scheme, "weight_block_size", None)
    return {
        "layer": type(layer).__name__,
        "method": type(method).__name__,
        "scheme": type(scheme).__name__ if scheme is not None else None,
        "runner": getattr(getattr(runner, "runner_backend", None), "value", None),
        "experts": layer.num_experts,
        "local": getattr(layer, "num_local_experts", layer.num_experts),
        "shared": int(getattr(layer, "num_fused_shared_experts", 0) or 0),
        "top_k": layer.top_k,
        "gated": bool(getattr(config, "is_gated", True)),
        "activation": config.activation,
        "dtype": short(first),
        "block": list(block) if block else None,
        "weights": {name: list(weight.shape) for name, weight in parameters.items()},
    }


def attention_facts(layer: Any) -> dict[str, object]:  # noqa: ANN401 - SGLang's, untyped
    """Return one attention layer's heads and widths on this rank."""
    window = getattr(layer, "sliding_window_size", None)
    return {
        "heads": layer.tp_q_head_num,
        "kv_heads": layer.tp_k_head_num,
        "width_qk": layer.qk_head_dim,
        "width_v": layer.v_head_dim,
        "window": window if window is not None and window > -1 else None,
        "soft_cap": float(getattr(layer, "logit_cap", 0.0) or 0.0),
    }


def short(tensor: "Tensor") -> str:
    """Return the type of a tensor's elements, by torch's name."""
    return str(tensor.dtype).removeprefix("torch.")


def config_file(experts: Mapping[str, Any]) -> str | None:
    """Return what SGLang calls the config file of these experts on this GPU; None where they have no [E, K, N]."""
    from sglang.srt.layers.moe.moe_runner.triton_utils import fused_moe_triton_config

    weights = experts["weights"]
    down, scale = weights.get("w2_weight"), weights.get("w13_weight_scale")
    if down is None or len(down) != 3:
        return None
    quantised_when_loaded = experts["method"] == "Fp8MoEMethod"  # by --quantization fp8: until then they are as stored
    dtype = "fp8_w8a8" if experts["dtype"].startswith("float8") or quantised_when_loaded else None
    have = {
        "E": down[0],
        "N": down[2],
        "dtype": dtype,
        "block_shape": experts["block"],
        "per_channel_quant": bool(scale and scale[-1] == 1 and scale[1:2] == weights["w13_weight"][1:2]),
        "down_moe": False,
    }
    return str(called(fused_moe_triton_config.get_config_file_name, have))


def deep_gemm_rows(asked: Asked) -> list[list[int]] | None:
    """Return the numbers of rows that SGLang's DeepGEMM loop reaches, as [first, last, step] each; None without it."""
    from sglang.srt.layers.deep_gemm_wrapper import configurer

    if not configurer.ENABLE_JIT_DEEPGEMM:
        return None
    from sglang.srt.layers.deep_gemm_wrapper import compile_utils

    called(compile_utils.update_deep_gemm_config, {"gpu_id": 0, "server_args": asked.args})
    ranges: list[list[int]] = []
    for rows in compile_utils._BUILTIN_M_LIST:
        last = ranges[-1] if ranges else None
        if last and (last[2] == 0 or rows - last[1] == last[2]):
            last[2], last[1] = rows - last[1], rows
        else:
            ranges.append([rows, rows, 0])
    return ranges


def answer(words: Sequence[str]) -> dict[str, object]:
    """Return all facts of a server with these flags, of its first rank."""
    import sglang
    import torch

    asked = Asked(words)
    asked.publish()
    from sglang.srt.configs.model_config import ModelConfig

    model_config = ModelConfig.from_server_args(asked.args)
    form_groups(asked, model_config)
    choose_kernels(asked)
    model, quantization = build(model_config)
    kernels = kernels_of(model)
    drafted = draft_of(asked, ModelConfig)
    for experts in (*kernels["experts"], *drafted.get("experts", ())):
        experts["config_file"] = config_file(experts)
    mla = getattr(model_config.attention_arch, "name", "") == "MLA"
    return {
        "sglang": sglang.__version__,
        "architecture": type(model).__name__,
        "tp": asked.size("tp_size"),
        "dtype": str(model_config.dtype).removeprefix("torch."),
        "gpu": torch.cuda.get_device_name(),
        "settings": {name: as_json(asked.setting(name)) for name in _SETTINGS},
        "kv_cache_quantization": as_json(getattr(quantization, "kv_cache_quant_algo", None)),
        "deep_gemm_rows": deep_gemm_rows(asked),
        "latent": [getattr(model_config, name, None) for name in _LATENT] if mla else None,
        **kernels,
        "draft": drafted or None,
    }


def draft_of(asked: Asked, model_config_class: Any) -> dict[str, list[dict[str, object]]]:  # noqa: ANN401
    """List the same of the draft model of speculative decoding; nothing where there is none."""
    path = asked.setting("speculative_draft_model_path")
    if not path:
        return {}
    model, _ = build(model_config_class.from_server_args(asked.args, model_path=path, is_draft_model=True))
    return kernels_of(model)


def as_json(value: object) -> object:
    """Return what JSON has a form for; of an enum its value, of anything else its words."""
    value = getattr(value, "value", value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def refusal(error: BaseException) -> str | None:
    """Return what SGLang said, where it was SGLang that said no, as its server would; None for any other error."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, NoSuchFlags):
        return str(error)
    by_sglang = bool(frames) and f"{os.sep}sglang{os.sep}srt{os.sep}" in frames[-1].filename
    if by_sglang and isinstance(error, ValueError | AssertionError | NotImplementedError):
        return " ".join(f"{error}".split())[:_LONGEST] or frames[-1].line or type(error).__name__
    return None


def main(words: Sequence[str]) -> int:
    """Print the answer. Returns 0 where there is one, a refusal included."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what SGLang prints is no answer
    try:
        found, status = answer(words), 0
    except Exception as error:  # noqa: BLE001 - whatever it is, the one who asks is told
        traceback.print_exc()
        said = refusal(error)
        found = (
            {"refused": said} if said else {"unknown": f"{type(error).__name__}: {error}".splitlines()[0][:_LONGEST]}
        )
        status = 0 if said else 1
    print(json.dumps(found), file=lines, flush=True)
    return status


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # nothing is left that an exit of SGLang's would have to see to
