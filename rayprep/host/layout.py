"""Where everything of ours lies: the two roots, and every path below them.

<profiles>/<cache>/                       the caches, one folder each
<profiles>/.rayprep/<stage>/<key>.json    completions
<profiles>/.rayprep/scratch/              what lasts no longer than the store's lock is held
<profiles>/.in_progress/<slug>/<stage>    markers
<profiles>/.locks/<slug>.lock             locks
<telemetry>/logs/<run_id>.log             session log
<telemetry>/prometheus/rayprep.prom       metrics of all runs, for node_exporter
<telemetry>/container_runs/<run_id>/      prep_result.json, its history/, the stages' logs; a container's manifest
<telemetry>/container_run_meta.env        points to the manifest of the container that was started last
"""

import contextlib
import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from rayprep.base.errors import BadRequest, ErrorType, HostUnfit
from rayprep.base.file_names import file_name
from rayprep.base.records import Located
from rayprep.base.text import printable
from rayprep.host.container_run import read_container_run
from rayprep.host.files import open_file
from rayprep.host.owned import OwnedTree, why_strange
from rayprep.model.caches import CACHES, CacheName
from rayprep.model.container_manifest import Manifest
from rayprep.model.stages import StageName

STORE_LOCK = ".store.lock"
_CONTRACT_ENV = (
    "TRITON_CACHE_DIR",
    "TORCHINDUCTOR_CACHE_DIR",
    "FLASHINFER_WORKSPACE_DIR",
    "SGLANG_DG_CACHE_DIR",
    "SGLANG_MOE_CONFIG_DIR",
)


@dataclass(frozen=True)
class Layout:
    """The two roots of one host, absolute."""

    profiles: Path
    telemetry: Path
    host: str | None = None
    """Where it is one of a fleet: hosts may share a telemetry root, so each has a folder of its own in a run's."""

    @cached_property
    def store(self) -> OwnedTree:
        """What is ours below the profiles root."""
        return OwnedTree(self.profiles)

    @cached_property
    def caches(self) -> OwnedTree:
        """What libraries have made below the profiles root, in folders that may be any user's."""
        return OwnedTree(self.profiles, strict=False)

    @cached_property
    def runs(self) -> OwnedTree:
        """What is ours below the telemetry root."""
        return OwnedTree(self.telemetry)

    def refuse_strange_store(self) -> None:
        """Look at all folders of ours in the store. Raises HostUnfit where one is a link, or somebody else's."""
        stages = map(self.completions, StageName)
        moe = self.cache(CacheName.MOE_CONFIGS)
        self.store.refuse_strange(self.scratch, self.epochs, *stages, self.store_lock.parent, self.markers)
        self.store.refuse_strange(*(moe / name for name in ("tuning", "kept")))
        with contextlib.suppress(OSError):
            self.store.refuse_strange(*(self.markers / name for name in self.store.names(self.markers)))

    def refuse_strange_runs(self, run_id: str) -> None:
        """Look at all folders that a run writes to. Raises HostUnfit where one is a link, or somebody else's."""
        self.runs.refuse_strange(self.session_log(run_id).parent, self.run(run_id) / "history")

    def cache(self, cache: CacheName) -> Path:
        return self.profiles / cache.value

    def completions(self, stage: StageName) -> Path:
        return self.profiles / ".rayprep" / stage.value

    def completion(self, stage: StageName, key: str) -> Path:
        return self.completions(stage) / f"{file_name(key)}.json"

    @property
    def scratch(self) -> Path:
        """Of whoever holds the store's lock, who clears it before and after.

        In it are children's homes, each under its stage's name, and entries on their way out, as `entry.*`.
        """
        return self.profiles / ".rayprep" / "scratch"

    @property
    def epochs(self) -> Path:
        return self.profiles / ".rayprep" / "epochs"

    @property
    def markers(self) -> Path:
        return self.profiles / ".in_progress"

    def marker(self, slug: str, stage: StageName) -> Path:
        return self.markers / file_name(slug) / stage.value

    def slug_lock(self, slug: str) -> Path:
        return self.profiles / ".locks" / f"{file_name(slug)}.lock"

    @property
    def store_lock(self) -> Path:
        """Held by whoever writes to the caches of this root, whatever the model."""
        return self.profiles / ".locks" / STORE_LOCK

    @property
    def store_id(self) -> Path:
        return self.profiles / ".rayprep" / "store-id"

    def run(self, run_id: str) -> Path:
        folder = self.telemetry / "container_runs" / file_name(run_id)
        return folder / "hosts" / file_name(self.host) if self.host else folder

    def result(self, run_id: str) -> Path:
        return self.run(run_id) / "prep_result.json"

    def run_lock(self, run_id: str) -> Path:
        """Held for as long as a run of this id goes on: two would write into each other's result."""
        return self.run(run_id) / ".lock"

    def session_log(self, run_id: str) -> Path:
        return self.telemetry / "logs" / f"{file_name(run_id)}.log"

    @property
    def metrics(self) -> Path:
        return self.telemetry / "prometheus" / "rayprep.prom"

    def stage_log(self, run_id: str, stage: StageName) -> Path:
        return self.run(run_id) / f"{stage.value}.log"

    def located(self, path: Path) -> Located:
        """`path` under its name here and under its name on the host; both are the same outside a container."""
        here = str(path)
        for root in self._mounts:
            if path.is_relative_to(root.container_path):
                below = path.relative_to(root.container_path)
                return Located(container_path=here, host_path=str(Path(root.host_path) / below))
        return Located(container_path=here, host_path=here)

    @property
    def _mounts(self) -> tuple[Located, ...]:
        run = self.container_run
        return (run.profiles_root, run.telemetry_root) if run else ()

    @cached_property
    def container_run(self) -> Manifest | None:
        """The manifest of the container run that this process is in; null outside one."""
        if not (self.telemetry / "container_run_meta.env").exists():
            return None
        return read_container_run(self.telemetry)

    def cache_env(self) -> dict[str, str]:
        """Every variable that leads a library to its cache under this root."""
        return {
            variable: str(self.cache(cache) / below if below else self.cache(cache))
            for cache, facts in CACHES.items()
            for variable, below in facts.env.items()
        }

    def contract_env(self) -> dict[str, str]:
        """Those of them that the result file has to name."""
        return {variable: value for variable, value in self.cache_env().items() if variable in _CONTRACT_ENV}


def choose_roots(environ: Mapping[str, str], profiles: str | None = None, telemetry: str | None = None) -> Layout:
    """Each root: the flag, then HOST_*_ROOT, then /profiles or /telemetry where mounted, then the XDG path.

    Reads only; `prepare_root` makes a folder.

    Raises:
        HostUnfit: a default is needed and this user has no home folder.
        BadRequest: a root's name is not UTF-8, or holds a character that does not print.
    """
    profiles_root = (
        profiles
        or environ.get("HOST_PROFILES_ROOT")
        or _mounted("/profiles")
        or f"{_below_home(environ, 'XDG_CACHE_HOME', '.cache')}/sglang/profiles"
    )
    telemetry_root = (
        telemetry
        or environ.get("HOST_TELEMETRY_ROOT")
        or _mounted("/telemetry", "logs", "container_runs")
        or f"{_below_home(environ, 'XDG_DATA_HOME', '.local/share')}/sglang-dev/telemetry"
    )
    return Layout(_absolute(profiles_root), _absolute(telemetry_root))


def _below_home(environ: Mapping[str, str], variable: str, below: str) -> str:
    """An XDG folder: the variable's, else the default below the home folder."""
    try:
        return environ.get(variable) or str(Path.home() / below)
    except RuntimeError:
        raise HostUnfit(
            "this user has no home folder to keep caches in",
            hint="set HOME, or give --profiles-root and --telemetry-root",
        ) from None


def _absolute(path: str) -> Path:
    # Not resolved: libraries bake the path in as it is given, and a link may be how a site moves its storage.
    absolute = os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 - Path keeps `..`
    if not absolute.isprintable():  # no JSON file could hold the name, or no line that programs read
        why = "has a character that is not UTF-8, or does not print"
        raise BadRequest(f"root {printable(absolute)} {why}", hint="choose another root")
    return Path(absolute)


def _mounted(path: str, *below: str) -> str | None:
    """`path` if it, or one of the folders `below` it, is a mount point."""
    candidates = [path, *(f"{path}/{name}" for name in below)]
    points = _mount_points()
    return path if any(candidate in points for candidate in candidates) else None


def _mount_points() -> set[str]:
    """As the kernel lists them: `os.path.ismount` misses a folder that is mounted from the same file system.

    Source: proc_pid_mountinfo(5), the fifth field. A blank in it is escaped, which no name asked for here has.
    """
    try:
        text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    return {line.split(" ", 5)[4] for line in text.splitlines()}


def prepare_root(path: Path, what: str) -> None:
    """Makes a root folder, and proves that it can be written.

    Raises:
        HostUnfit: it is a file, it cannot be written, or what it was mounted from has gone.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "not writable by this user")
        # access(2) says yes to root on a folder that is full of errors; listing it does not.
        with os.scandir(path) as entries:
            next(entries, None)
    except FileExistsError:
        raise HostUnfit(f"{what} root {path} is a file, not a folder", hint=f"choose another --{what}-root") from None
    except OSError as error:
        raise root_unfit(path, what, error) from None


def make_scratch(layout: Layout) -> None:
    """Make the scratch folder, for this user alone: children have their homes in it, and what is still to be proved.

    Raises:
        OSError: it cannot be made, or another user's is there and could not be removed (EPERM).
    """
    with layout.store.folder(layout.scratch, make=True, mode=0o700) as folder:
        if stranger := why_strange(folder):
            raise PermissionError(errno.EPERM, f"{stranger} (remove it)", str(layout.scratch))


def clear_scratch(layout: Layout) -> None:
    """Remove what a run left there, where that can be done. For the holder of the store's lock."""
    with contextlib.suppress(OSError):
        layout.store.remove(layout.scratch)


def only_readable(path: Path) -> bool:
    """Tell whether a root is there that this user may look into, and may not write to."""
    return path.is_dir() and os.access(path, os.R_OK | os.X_OK) and not os.access(path, os.W_OK)


def open_in_run(path: Path, flags: int) -> int:
    """Open a stage's log, or another file of a run's folder: from the telemetry root on, by plain folders alone.

    Raises:
        OSError: it cannot be opened, is no regular file, or is behind a link.
    """
    depth = next((depth for depth in (2, 4) if path.parts[-1 - depth :][:1] == ("container_runs",)), 0)
    with OwnedTree(path.parents[depth]).folder(path.parent) as folder:
        return open_file(path.name, flags | os.O_NOFOLLOW, folder=folder)


def open_log(path: Path) -> BinaryIO:
    """Open a stage's log to append to it, or make it in its folder. Raises OSError, as `open_in_run`."""
    return os.fdopen(open_in_run(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab")


def root_unfit(path: Path, what: str, error: OSError) -> HostUnfit:
    """The one-line form of an OS error on a root, or on what lies below it."""
    place = nearest(Path(error.filename), path) if isinstance(error.filename, str) else path
    named = f"{what} root {path}" if place == path else f"{place} below the {what} root"
    return HostUnfit(
        f"{named} cannot be used: {error.strerror or error}",
        hint=f"mend it, or choose another --{what}-root",
        error_type=os_error_type(error),
    )


def nearest(place: Path, root: Path) -> Path:
    """What there is of `place`: where a file cannot be made, its folder is to be mended."""
    while place.is_relative_to(root) and not os.path.lexists(place):
        place = place.parent
    return place if place.is_relative_to(root) else root


def os_error_type(error: OSError) -> ErrorType:
    """A full disk is `insufficient_disk`; whatever else the OS refuses is `permissions_unexpected`."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return ErrorType.INSUFFICIENT_DISK if full else ErrorType.PERMISSIONS_UNEXPECTED
