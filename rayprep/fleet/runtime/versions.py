"""Whether a driver can join a Ray cluster: its Ray and its Python have to be the cluster's."""

from rayprep.base.records import Record


class RayVersions(Record):
    """What a cluster was started with, or what this process has.

    Source of the names: the value of CLUSTER_METADATA in the key-value store of Ray's GCS
    (`ray/_common/usage/usage_lib.py`), which has more keys.
    """

    ray_version: str
    python_version: str

    def __str__(self) -> str:
        return f"Ray {self.ray_version} on Python {self.python_version}"

    def fits(self, cluster: "RayVersions", *, patch: bool = True) -> bool:
        """By Ray's own rule: the same Ray, and the same Python to its patch level, or without `patch` to its minor."""
        parts = 3 if patch else 2
        mine, theirs = (each.python_version.split(".")[:parts] for each in (self, cluster))
        return self.ray_version == cluster.ray_version and mine == theirs
