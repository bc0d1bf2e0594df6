"""What one request of a campaign needs and the next can use as well, such as Ray with its actors."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Kept(Generic[T]):
    """Made when it is first needed, kept until the block ends, and made anew after somebody failed with it."""

    def __init__(self, make: Callable[[], AbstractContextManager[T]]) -> None:
        self._make, self._stack = make, ExitStack()
        self._value: list[T] = []

    @contextmanager
    def held(self) -> Iterator[T]:
        """Whatever is raised within the block drops it."""
        try:
            if not self._value:
                self._value.append(self._stack.enter_context(self._make()))
            yield self._value[0]
        except BaseException:
            self._drop()
            raise

    def _drop(self) -> None:
        self._value.clear()
        self._stack.close()

    def __enter__(self) -> "Kept[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self._drop()
