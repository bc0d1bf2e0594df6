from collections.abc import Callable


class runtime:
    jit_cache_hook: Callable[..., bool] | None = None


class compilation:
    listener: Callable[..., None] | None = None


class cache:
    dir: str | None = None
