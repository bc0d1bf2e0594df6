"""As much of torch as makes operands: a tensor here is its shape."""

float8_e4m3fn = bfloat16 = float32 = int32 = None


class Tensor:
    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __getitem__(self, rows: slice) -> "Tensor":
        return Tensor((min(rows.stop, self.shape[0]), *self.shape[1:]))


def empty(shape: tuple[int, ...], device: str, dtype: object) -> Tensor:
    assert device == "cuda"
    return Tensor(shape)


ones = zeros = empty


class cuda:
    @staticmethod
    def mem_get_info() -> tuple[int, int]:
        return 100 << 30, 140 << 30

    @staticmethod
    def synchronize() -> None:
        pass

    empty_cache = synchronize
