"""The decode step against naive arithmetic in float64, and the child that compiles it in real processes."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402
from torch._functorch.aot_autograd import aot_module_simplified  # noqa: E402
from torch._inductor.codecache import compiled_fx_graph_hash  # noqa: E402
from torch._inductor.exc import CppCompileError, InvalidCxxCompiler  # noqa: E402
from torch.utils._pytree import tree_leaves, tree_map_only  # noqa: E402

from rayprep.host.completions import read_completions  # noqa: E402
from rayprep.host.environment import server_cache_env  # noqa: E402
from rayprep.host.layout import Layout  # noqa: E402
from rayprep.model.architecture import Architecture, Quantization, parse_architecture  # noqa: E402
from rayprep.model.errors import ErrorType  # noqa: E402
from rayprep.model.package import listed_by  # noqa: E402
from rayprep.model.stages import StageName  # noqa: E402
from rayprep.stages.child_lines import FailLine, StepLine  # noqa: E402
from rayprep.stages.decode_step import (  # noqa: E402
    KvCache,
    Mlp,
    Random,
    StepInput,
    Weights,
    attend,
    decode_step,
    mixture,
    mlp_block,
    rms_norm,
    rope,
)
from rayprep.stages.inductor_child import OpenedFiles, SwallowedErrors, largest_difference  # noqa: E402
from rayprep.stages.inductor_protocol import (  # noqa: E402
    CHILD_LINE,
    ChildRequest,
    GraphsLine,
    Mismatch,
    RankShape,
    failure,
    memory_bytes,
    rank_shape,
    unit_name,
    weight_bytes,
)
from tests.conftest import QUICK_COMPILER, Built  # noqa: E402

pytestmark = pytest.mark.torch

CONFIGS = Path(__file__).parents[2] / "rayprep" / "configs"


def shipped(name: str) -> Architecture:
    return parse_architecture((CONFIGS / name / "config.json").read_text(), name)


DENSE, MOE = shipped("tiny-dense"), shipped("tiny-moe")
SMALL = DENSE.model_copy(update={"num_hidden_layers": 1})


def normal(*sizes: int, seed: int = 0) -> Tensor:
    """Float64, so that what is left of a difference is a wrong formula."""
    return torch.randn(sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def widened(weights: Weights) -> Weights:
    """The same weights in float64."""
    return tree_map_only(Tensor, Tensor.double, weights)


def size(tree: object) -> int:
    """Bytes of all its tensors."""
    return sum(leaf.nbytes for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


# The parts


def test_rms_norm_has_unit_mean_square_and_scales_by_its_weight() -> None:
    x, weight = normal(5, 32), normal(32, seed=1)
    plain = rms_norm(x, torch.ones(32, dtype=torch.float64), 0.0)
    assert torch.allclose(plain.square().mean(-1), torch.ones(5, dtype=torch.float64))
    naive = torch.stack([row / math.sqrt(sum(float(v) ** 2 for v in row) / 32 + 0.5) for row in x]) * weight
    assert torch.allclose(rms_norm(x, weight, 0.5), naive)


def test_rope_preserves_norms_and_leaves_position_zero_alone() -> None:
    x = normal(3, 2, 16)
    turned = rope(x, torch.tensor([0, 7, 1000]), 10000.0)
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[0], x[0])
    assert not torch.allclose(turned[1], x[1], atol=0.1)


def test_rope_makes_products_depend_on_the_distance_alone() -> None:
    query, key = normal(1, 1, 16), normal(1, 1, 16, seed=1)

    def product(query_at: int, key_at: int) -> float:
        turned = (rope(x, torch.tensor([at]), 500.0) for x, at in ((query, query_at), (key, key_at)))
        return float(math.prod(turned).sum())

    assert product(9, 4) == pytest.approx(product(105, 100), rel=1e-9)
    assert product(9, 4) != pytest.approx(product(9, 5), rel=1e-3)


def test_rope_turns_pairs_half_a_head_apart_by_theta_to_the_power() -> None:
    x, theta, position = normal(1, 1, 6), 50.0, 11
    turned = rope(x, torch.tensor([position]), theta)[0, 0]
    for pair in range(3):
        angle = position * theta ** (-2 * pair / 6)
        number = complex(x[0, 0, pair], x[0, 0, pair + 3]) * complex(math.cos(angle), math.sin(angle))
        assert (float(turned[pair]), float(turned[pair + 3])) == pytest.approx((number.real, number.imag))


def naive_attention(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One head's [D] over [S, D], slot by slot."""
    weights = [math.exp(float(query @ key) / math.sqrt(len(query))) for key in keys]
    return sum((w * value for w, value in zip(weights, values, strict=True)), torch.zeros_like(query)) / sum(weights)


def test_attention_equals_a_loop_over_sequences_heads_and_filled_slots() -> None:
    batch, heads, kv_heads, slots, width = 3, 6, 2, 7, 4
    queries, positions = normal(batch, heads, width), torch.tensor([0, 3, 6])
    cache = KvCache(normal(batch, kv_heads, slots, width, seed=1), normal(batch, kv_heads, slots, width, seed=2))
    actual = attend(queries, cache, positions)
    for row in range(batch):
        end = int(positions[row]) + 1
        for head in range(heads):
            shared = head // (heads // kv_heads)
            keys, values = cache.keys[row, shared, :end], cache.values[row, shared, :end]
            assert torch.allclose(actual[row, head], naive_attention(queries[row, head], keys, values))


def naive_mlp(token: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = (gate_up @ token).chunk(2)
    return down @ (gate * torch.sigmoid(gate) * up)


def test_dense_mlp_equals_its_formula_token_by_token() -> None:
    tokens, gate_up, down = normal(4, 6), normal(10, 6, seed=1), normal(6, 5, seed=2)
    naive = torch.stack([naive_mlp(token, gate_up, down) for token in tokens])
    assert torch.allclose(mlp_block(tokens, Mlp(gate_up, down, None), 0), naive)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_mixture_equals_a_loop_over_each_tokens_chosen_experts(top_k: int) -> None:
    tokens, router = normal(9, 6), normal(4, 6, seed=1)
    gate_up, down = normal(4, 10, 6, seed=2), normal(4, 6, 5, seed=3)
    actual = mixture(tokens, Mlp(gate_up, down, router), router, top_k)
    for token, ours in zip(tokens, actual, strict=True):
        scores = [math.exp(float(score)) for score in router @ token]
        chosen = sorted(range(4), key=scores.__getitem__)[-top_k:]
        total = sum(scores[expert] for expert in chosen)
        theirs = sum(scores[e] / total * naive_mlp(token, gate_up[e], down[e]) for e in chosen)
        assert torch.allclose(ours, theirs)


# The whole step


@pytest.mark.parametrize("architecture", [DENSE, MOE], ids=["dense", "moe"])
def test_decoding_token_by_token_equals_causal_attention_over_the_sequence(architecture: Architecture) -> None:
    shape, length = rank_shape(architecture, 2), 5
    weights = widened(Random(shape, "cpu", 0).weights())
    tokens = normal(length, shape.hidden)
    empty = (1, shape.kv_heads, length, shape.head_dim)
    caches = tuple(KvCache(normal(*empty), normal(*empty)) for _ in range(shape.layers))  # stale, to be masked
    decoded = [
        decode_step(shape, weights, StepInput(tokens[at : at + 1], torch.tensor([at]), caches)) for at in range(length)
    ]
    assert torch.allclose(torch.cat(decoded), whole_sequence(shape, weights, tokens))


def whole_sequence(shape: RankShape, weights: Weights, hidden: Tensor) -> Tensor:
    """All tokens [T, H] at once, layer by layer and head by head, without a cache."""
    at = torch.arange(len(hidden))
    group = shape.heads // shape.kv_heads
    for layer in weights.layers:
        heads = rms_norm(hidden, layer.attention_norm, shape.eps) @ layer.qkv.T
        queries, keys, values = heads.view(len(hidden), -1, shape.head_dim).tensor_split(
            (shape.heads, shape.heads + shape.kv_heads), dim=1
        )
        queries, keys = rope(queries, at, shape.theta), rope(keys, at, shape.theta)
        attended = [
            naive_attention(queries[t, head], keys[: t + 1, head // group], values[: t + 1, head // group])
            for t in at.tolist()
            for head in range(shape.heads)
        ]
        hidden = hidden + torch.stack(attended).view(len(hidden), -1) @ layer.output.T
        hidden = hidden + mlp_block(rms_norm(hidden, layer.mlp_norm, shape.eps), layer.mlp, shape.top_k)
    return rms_norm(hidden, weights.final_norm, shape.eps)


def test_a_step_writes_its_own_slots_and_no_others() -> None:
    shape = rank_shape(DENSE, 1)
    random = Random(shape, "cpu", 0)
    given = random.step_input(4, 16)
    before = given.copy()
    decode_step(shape, random.weights(), given)
    slots = torch.arange(16) == given.positions[:, None]
    for old, new in zip(before.caches, given.caches, strict=True):
        for was, now in zip(old, new, strict=True):
            changed = (was != now).any(-1)
            assert torch.equal(changed, slots[:, None, :].expand_as(changed))


@pytest.mark.parametrize("architecture", [DENSE, MOE], ids=["dense", "moe"])
def test_random_inputs_keep_activations_near_one(architecture: Architecture) -> None:
    shape = rank_shape(architecture, 1)
    random = Random(shape, "cpu", 0)
    given = random.step_input(64, 32)
    assert given.positions.min() > 0
    assert given.positions.unique().numel() > 8
    output = decode_step(shape, random.weights(), given).float()
    assert 0.5 < output.square().mean().sqrt() < 2


def test_random_tokens_are_far_from_a_tie_between_experts() -> None:
    shape = rank_shape(MOE, 1)
    random = Random(shape, "cpu", 0)
    router, tokens = random.weights().layers[0].mlp.router, random.step_input(256, 4).hidden
    scores = (tokens.float() @ router.float().T).sort(-1, descending=True).values
    gaps = scores[:, shape.top_k - 1] - scores[:, shape.top_k]
    assert gaps.min() > 0.1 * scores.abs().max()


# What makes another graph


def graph_key(architecture: Architecture, batch_size: int = 2, seed: int = 0) -> str:
    """Inductor's own key of the step's graph, made without compiling it."""
    shape = rank_shape(architecture, 1)
    random = Random(shape, "cpu", seed)
    weights, given = random.weights(), random.step_input(batch_size, 8)
    keys: list[str] = []

    def take_key(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        keys.append(compiled_fx_graph_hash(graph, inputs, {}, [])[0])
        return graph

    def backend(module: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        return aot_module_simplified(module, inputs, fw_compiler=take_key)

    torch._dynamo.reset()
    with torch.no_grad():
        step = torch.compile(decode_step, backend=backend, fullgraph=True, dynamic=False)
        step(shape, weights, given)
    (key,) = keys
    return key


def test_every_width_and_constant_makes_another_graph_and_a_seed_does_not() -> None:
    changes: list[dict[str, object]] = [
        {},
        {"intermediate_size": 512},
        {"rope_theta": 10000.0},
        {"rms_norm_eps": 1e-5},
    ]
    keys = [graph_key(SMALL.model_copy(update=change)) for change in changes]
    keys += [graph_key(MOE.model_copy(update={"num_hidden_layers": 1})), graph_key(SMALL, batch_size=3)]
    assert len(set(keys)) == len(keys)
    assert graph_key(SMALL, seed=1) == keys[0]


# What the parent reckons with


def test_a_rank_has_its_share_of_heads_and_widths_and_at_least_one_head() -> None:
    big = DENSE.model_copy(update={"num_attention_heads": 32, "num_key_value_heads": 4, "num_hidden_layers": 48})
    shape = rank_shape(big, 8)
    assert (shape.heads, shape.kv_heads, shape.intermediate, shape.layers) == (4, 1, 96, 2)
    moe = rank_shape(MOE.model_copy(update={"num_experts": 128, "num_experts_per_tok": 12}), 2)
    assert (moe.experts, moe.top_k, moe.intermediate) == (8, 8, 64)
    mixtral = MOE.model_copy(update={"moe_intermediate_size": None})
    assert rank_shape(mixtral, 1).intermediate == MOE.intermediate_size


@pytest.mark.parametrize(
    ("dtype", "name"),
    [("bfloat16", "bf16"), ("torch.float16", "fp16"), ("float32", "fp32"), ("float8_e4m3fn", "bf16")],
)
def test_a_unit_is_named_after_what_makes_its_graph(dtype: str, name: str) -> None:
    architecture = DENSE.model_copy(update={"dtype": dtype})
    assert unit_name(architecture, 1, 8, 512, "cpu") == f"decode:cpu:{name}:l2:b8:s512"


@pytest.mark.parametrize("architecture", [DENSE, MOE], ids=["dense", "moe"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_reckoned_bytes_are_those_of_the_tensors(architecture: Architecture, dtype: str) -> None:
    architecture = architecture.model_copy(update={"dtype": dtype})
    random = Random(rank_shape(architecture, 2), "cpu", 0)
    weights = size(random.weights())
    assert weight_bytes(architecture, 2) == weights
    caches = size(random.step_input(4, 1024).caches)
    reckoned = memory_bytes(architecture, 2, (1, 4), 1024)
    assert weights + 2 * caches < reckoned < 2 * (weights + 2 * caches)


def request(mode: str, cache: Path, architecture: Architecture = SMALL) -> ChildRequest:
    return ChildRequest(
        mode=mode,
        architecture=architecture,
        tp=1,
        batch_sizes=(1,),
        max_seq_len=16,
        device="cpu",
        cache_dir=str(cache),
    )


def test_a_request_survives_its_file(tmp_path: Path) -> None:
    quantized = MOE.model_copy(update={"quantization": Quantization(weight_block_size=(128, 128))})
    sent = request("build", tmp_path, quantized)
    assert ChildRequest.model_validate_json(sent.model_dump_json()) == sent


# What the child notices


def chained(inner: BaseException) -> BaseException:
    """As Dynamo raises it: the compiler's error from inside its own."""
    try:
        try:
            raise inner
        except BaseException as error:
            raise RuntimeError("backend='inductor' raised:") from error
    except RuntimeError as outer:
        return outer


FULL, MEMORY, TOOLCHAIN = ErrorType.INSUFFICIENT_DISK, ErrorType.OOM_DURING_WARMUP, ErrorType.TOOLCHAIN_MISMATCH


@pytest.mark.parametrize(
    ("error", "error_type", "said"),
    [
        (OSError(28, "No space left on device"), FULL, "No space left"),
        (
            CppCompileError(["g++"], "a.cpp:1: note: x\nfatal error: No space left on device"),
            FULL,
            "fatal",
        ),
        (
            CppCompileError(["g++"], "g++: fatal error: Killed signal terminated program cc1plus"),
            MEMORY,
            "K",
        ),
        (CppCompileError(["g++"], "warning: x\na.cpp:3:1: error: 'y' was not declared"), "compile_failed", "'y'"),
        (
            CppCompileError(["g++"], "fatal error: Python.h: No such file or directory"),
            TOOLCHAIN,
            "Python.h",
        ),
        (InvalidCxxCompiler(), TOOLCHAIN, "No working C++ compiler"),
        (PermissionError(13, "Permission denied", "g++"), TOOLCHAIN, "Permission denied"),
        (PermissionError(13, "Permission denied", "/cache/x"), "compile_failed", "Permission denied"),
        (ModuleNotFoundError("No module named 'torch'"), TOOLCHAIN, "torch"),
        (ImportError("/cache/x.main.so: file too short"), "compile_failed", "too short"),
        (MemoryError("no more"), MEMORY, "no more"),
        (torch.OutOfMemoryError("CUDA out of memory."), MEMORY, "CUDA"),
        (Mismatch("off by 1"), "compile_failed", "off by 1"),
    ],
)
def test_a_failure_is_told_by_its_root_in_one_line(error: BaseException, error_type: str, said: str) -> None:
    line = failure(chained(error))
    assert line.error_type == error_type
    assert said in line.message
    assert "\n" not in line.message
    assert "raised" not in line.message


def test_an_allocation_that_torch_refuses_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert failure(caught.value).error_type == MEMORY


def test_a_difference_beyond_the_tolerance_and_a_nan_are_mismatches() -> None:
    expected = torch.ones(4, 100)
    nearly = expected.clone()
    nearly[0, 0] += 0.01
    assert largest_difference([nearly], [expected], 1e-3) == pytest.approx(0.01, rel=1e-4)
    for wrong in (expected * 1.01, torch.full_like(expected, math.nan)):
        with pytest.raises(Mismatch):
            largest_difference([expected, wrong], [expected, expected], 1e-3)


def test_opened_files_are_those_below_the_root_and_their_twins(tmp_path: Path) -> None:
    root = tmp_path / "cache dir"
    names = ["ab/cabc.main.so", "ab/cabc.main.cpp", "ab/cother.main.so", "fx/entry", "de/cdef.so", "locks/cabc.lock"]
    for name in (*names, "fx/.1.2.tmp"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "fx/link").symlink_to(tmp_path)
    opened = OpenedFiles(root)
    opened("import", ("cabc.kernel", str(root / "ab/cabc.main.so"), None, None, None))
    opened("open", (os.fsencode(root / "fx/entry"), "rb", 0))
    opened("open", (str(root / "fx/gone"), "rb", 0))
    opened("open", (str(root / "fx/.1.2.tmp"), "wb", 0))
    opened("open", (str(root / "locks/cabc.lock"), "wb", 0))
    opened("open", (3, "rb", 0))
    opened("open", (str(tmp_path), "rb", 0))
    opened("subprocess.Popen", ("python", ["python", "-c", f'\nLoadLibrary("{root}/de/cdef.so")\n'], None, None))
    assert opened.used() == ("ab/cabc.main.cpp", "ab/cabc.main.so", "de/cdef.so", "fx/entry")


def test_a_cache_entry_that_torch_could_not_write_is_noticed() -> None:
    swallowed = SwallowedErrors()
    full = OSError(28, "No space left on device")
    logger = torch._inductor.codecache.log
    try:
        raise full
    except OSError:
        logger.warning("fx graph unable to write to cache", exc_info=True)
    torch._functorch._aot_autograd.autograd_cache.log.warning("unable to serialize: %s", full)
    logger.warning("nothing of the kind: %s", ValueError("x"))
    assert swallowed.errors == [full, full]


# Real children


def start(sent: ChildRequest, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    file = folder / "request.json"
    file.write_text(sent.model_dump_json())
    child_env = {**os.environ, "CXX": str(QUICK_COMPILER), "TORCHINDUCTOR_CACHE_DIR": sent.cache_dir, **env}
    command = [sys.executable, "-m", "rayprep.stages.inductor_child", str(file)]
    return subprocess.run(command, env=child_env, capture_output=True, text=True, timeout=300, check=False)


def talk(sent: ChildRequest, folder: Path, **env: str) -> GraphsLine:
    ended = start(sent, folder, **env)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    *steps, done = map(CHILD_LINE.validate_json, ended.stdout.splitlines())
    assert isinstance(done, GraphsLine)
    counts = [(step.n, step.m) for step in steps if isinstance(step, StepLine)]
    assert counts == [(n, len(done.graphs)) for n in range(1, len(done.graphs) + 1)]
    return done


def files(cache: Path) -> set[str]:
    found = (path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(cache).as_posix() for path in found}


def test_a_second_process_finds_the_graph_in_what_the_completion_lists(built: Built, tmp_path: Path) -> None:
    """Of a copy of just that, at another path, and compiles again one library that is missing, and nothing else."""
    layout = Layout(built.roots.profiles, built.roots.telemetry)
    (completion,), _ = read_completions(layout, StageName.INDUCTOR)
    listed = {path.removeprefix("torchinductor/") for path in listed_by([completion])}
    copy, home = tmp_path / "another" / "place", tmp_path / "home"
    home.mkdir()
    for name in listed:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(built.roots.profiles / "torchinductor" / name, copy / name)
    sent = request("check", copy, DENSE).model_copy(update={"max_seq_len": 512})
    # Of the instruction sets, only what the CPU's flags leave open is tried by compiling: it saves three compiles.
    ours = server_cache_env(layout)
    del ours["TORCHINDUCTOR_CACHE_DIR"]
    outside = {**ours, "HOME": str(home), "TMPDIR": str(home), "TORCHINDUCTOR_VEC_ISA_OK": "1"}
    done = talk(sent, tmp_path, **outside)
    assert [(graph.unit, graph.cache_hit) for graph in done.graphs] == [(unit_name(DENSE, 1, 1, 512, "cpu"), True)]
    assert set(done.used) == listed == files(copy)

    missing = next(copy.rglob("*.main.so"))
    missing.unlink()
    started_at = time.time()
    (moved,) = talk(sent, tmp_path, OMP_NUM_THREADS="1", **outside).graphs
    assert not moved.cache_hit
    assert files(copy) == listed
    assert [path for path in copy.rglob("*.so") if path.stat().st_mtime > started_at] == [missing]
    assert not any(home.iterdir())


def test_a_missing_compiler_and_a_bad_request_are_one_line(tmp_path: Path) -> None:
    ended = start(request("build", tmp_path / "cache"), tmp_path, CXX="/nonexistent/g++")
    (line,) = map(CHILD_LINE.validate_json, ended.stdout.splitlines())
    assert isinstance(line, FailLine)
    assert (ended.returncode, line.error_type) == (1, TOOLCHAIN)
    assert line.unit == unit_name(SMALL, 1, 1, 16, "cpu")
    assert "Traceback" in ended.stderr

    elsewhere = start(request("build", tmp_path / "cache"), tmp_path, TORCHINDUCTOR_CACHE_DIR="/elsewhere")
    assert elsewhere.returncode == 1
    assert "cache_dir" in json.loads(elsewhere.stdout)["message"]
