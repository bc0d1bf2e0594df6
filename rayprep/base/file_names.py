"""The one way from a name that came from elsewhere to the name of a file."""

import hashlib
import re

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=@:-]{0,149}")


def file_name(name: str) -> str:
    """Turn a host's name, a run's id, a slug, a key or a GPU's UUID into one part of a path.

    What is plain stays as it is. Everything else loses what is not, and gets eight digits of its digest: no two names
    give one file, none leads to another folder, and none is hidden.
    """
    if _PLAIN.fullmatch(name):
        return name
    digits = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:100]
    return f"{plain or 'name'}-{digits}"


def is_file_name(name: str) -> bool:
    """Tell whether a file of that name is its own: `file_name` leaves it as it is."""
    return file_name(name) == name
