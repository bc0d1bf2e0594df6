from collections.abc import Iterator
from contextlib import contextmanager


class _Current:
    config: dict[str, int] | None = None


@contextmanager
def override_config(config: dict[str, int] | None) -> Iterator[None]:
    before, _Current.config = _Current.config, config
    yield
    _Current.config = before


def get_config() -> dict[str, int] | None:
    return _Current.config
