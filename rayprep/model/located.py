"""A path under its two names."""

from rayprep.base.records import Record


class Located(Record):
    """One file or folder under its two names: as the run sees it, and as the host outside a container does."""

    container_path: str
    host_path: str
