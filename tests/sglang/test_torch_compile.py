"""What a server's flags say of torch.compile."""

import pytest

from rayprep.sglang.torch_compile import asks, captures_decode, max_batch, with_max_batch, without

ON = "--enable-torch-compile"


@pytest.mark.parametrize(
    ("server_args", "expected"),
    [
        ((ON,), True),
        (("--attention-backend", "triton", "--enable_torch_compile"), True),
        ((), False),
        (("--torch-compile-max-bs", "8"), False),
        (("--enable-torch-compile-debug-mode",), False),
    ],
)
def test_who_asks_for_it(server_args: tuple[str, ...], expected: bool) -> None:
    assert asks(server_args) is expected


@pytest.mark.parametrize(
    "server_args",
    [("--disable-cuda-graph",), ("--disable-decode-cuda-graph",), ("--cuda-graph-backend-decode=disabled",)],
)
def test_without_decode_graphs_nothing_is_compiled(server_args: tuple[str, ...]) -> None:
    assert not captures_decode((ON, *server_args))
    assert captures_decode((ON, "--disable-prefill-cuda-graph", "--cuda-graph-backend-decode", "full"))


def test_the_largest_batch_is_the_flags_own_or_the_one_asked_for() -> None:
    assert with_max_batch((ON,), 8) == (ON, "--torch-compile-max-bs", "8")
    for own in (("--torch-compile-max-bs", "4"), ("--torch-compile-max-bs=4",), ("--torch_compile_max_bs=4",)):
        assert (max_batch((ON, *own)), with_max_batch((ON, *own), 8)) == (4, (ON, *own))
    assert max_batch((ON,)) is None


def test_all_that_belongs_to_it_is_left_out() -> None:
    kept = ("--attention-backend", "triton", "--cuda-graph-bs-decode", "1", "8")
    more = ("--torch-compile-max-bs", "8", "--enable-torch-compile-debug-mode")
    assert without((kept[0], kept[1], ON, *more, *kept[2:])) == kept
    assert without((*kept, "--torch-compile-max-bs=8", "--enable_torch_compile")) == kept
