"""Finding a free port by binding it."""

import socket
from collections.abc import Iterator

import pytest

from rayprep.base.errors import ErrorType, StageError
from rayprep.host.ports import first_free, is_free


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def test_a_port_is_free_until_somebody_listens(taken: int) -> None:
    assert not is_free(taken)
    assert is_free(free_port())


def test_one_who_listens_everywhere_listens_here() -> None:
    with socket.create_server(("0.0.0.0", 0)) as listener:
        assert not is_free(listener.getsockname()[1])


def test_asking_does_not_take_it() -> None:
    port = free_port()
    assert is_free(port)
    with socket.create_server(("127.0.0.1", port)):
        assert not is_free(port)


def test_the_first_that_is_free(taken: int) -> None:
    free = free_port()
    assert first_free((taken, free)) == free


def test_none_is_free(taken: int) -> None:
    with pytest.raises(StageError, match=f"7, {taken}") as caught:
        first_free((taken,), tried=(7,))
    assert caught.value.error_type is ErrorType.PORT_ALL_BUSY


def test_the_only_one_is_not_free(taken: int) -> None:
    """A user's own server has no other, and no flag of ours gives it one."""
    with pytest.raises(StageError, match=f"the server's port {taken} is taken") as caught:
        first_free((taken,))
    assert "--warmup-port" not in caught.value.hint
