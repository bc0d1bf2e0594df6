"""Numbers as people read them. What a file holds may be any number, so none is too large, negative or no number."""

import math

_MOST = 10**15


def seconds(value: float | None) -> float:
    """As a finite number that is not negative."""
    return min(max(value, 0.0), float(_MOST)) if value is not None and math.isfinite(value) else 0.0


def duration(value: float | None) -> str:
    """`4.2 s`, `3 min 05 s`, `2 h 10 min`; `-` for none."""
    if value is None:
        return "-"
    length = seconds(value)
    if length < 59.95:
        return f"{length:.1f} s"
    whole = round(length)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02} min"


def gib(count: float) -> str:
    """`140.0 GiB`, of bytes."""
    return f"{count / (1 << 30):.1f} GiB"


def ago(seconds: float | None) -> str:
    """`3 d ago`, `5 min ago`; `-` for none."""
    if seconds is None:
        return "-"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def size(count: int) -> str:
    """`0 B`, `27.6 KiB`, `1.2 TiB`."""
    length = float(min(max(count, -_MOST), _MOST))
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(length) < 1024:
            return f"{length:.0f} {unit}" if unit == "B" else f"{length:.1f} {unit}"
        length /= 1024
    return f"{length:.1f} TiB"
