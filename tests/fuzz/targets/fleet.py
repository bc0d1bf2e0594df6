"""The files of a fleet and of a container run: leases, manifests, pointers, facts of a host."""

import json
from dataclasses import asdict
from pathlib import Path

from rayprep.base.records import Located, to_json
from rayprep.base.sealed import open_seal
from rayprep.client import find_manifest, needs_prep, read_manifest
from rayprep.fleet.coordinator.lease_file import LeaseFile
from rayprep.host.container_run import read_container_run
from rayprep.host.gpu import Gpu, visible_gpus
from rayprep.host.manifest_file import change_manifest, update_manifest, write_manifest
from rayprep.host.rehearsal import VARIABLE, read_facts
from rayprep.host.this_host import choose_device
from rayprep.model.container_manifest import POINTER_NAME, Manifest, has_snapshot, merge_snapshot, with_programs
from rayprep.model.fleet.leases import Granted, Holder, Lease, LeaseTable
from rayprep.model.spec import DeviceChoice
from tests.fuzz.resealing import resealed
from tests.fuzz.target import REFUSED, Target, require
from tests.model.samples import signature
from tests.model.test_container_manifest import manifest, snapshot

_TTL_S = 30.0


def _granted(path: Path) -> list[LeaseTable]:
    """The table after each grant: three keys, the first of which is granted twice."""
    file, table, tables = LeaseFile(path), LeaseTable(ttl_s=_TTL_S), []
    for number, key in enumerate(("key-0", "key-1", "key-2", "key-0")):
        first = table.lease("store", key, 1.0).held
        if first:
            table = table.release("store", key, first.holder, 1, now=2.0)
        who = Holder(host=f"gpu-{number}", invocation="run", node_id="n")
        table, answer = table.request("store", key, who, now=3.0)
        assert isinstance(answer, Granted)
        file.keep(table, "store", key)
        tables.append(table)
    return tables


def _leases(table: LeaseTable) -> dict[tuple[str, str, int], str]:
    """Who holds what, with its epoch."""
    found = {(store, key): lease for store, keys in table.leases.items() for key, lease in keys.items()}
    return {(*where, lease.epoch): _host(lease) for where, lease in found.items()}


def _host(lease: Lease) -> str:
    return lease.held.holder.host if lease.held else ""


def lease_targets(folder: Path) -> list[Target]:
    """Never a lease that was not granted, and never an earlier one in place of a later whose line is whole."""
    path = folder / "leases" / "leases"
    path.parent.mkdir(parents=True)
    granted = {lease: host for table in _granted(path) for lease, host in _leases(table).items()}
    good = path.read_bytes()
    last = good.splitlines()[-1]

    def read(data: bytes) -> str:
        path.write_bytes(data)
        table = LeaseFile(path).read(_TTL_S, 5.0)
        found = _leases(table)
        require(found.items() <= granted.items(), f"not granted: {found}")
        require(table.restored_at == 5.0, "nobody is waited for")
        require(last not in data.splitlines() or ("store", "key-0", 2) in found, f"an earlier lease stands: {found}")
        return "all" if len(found) == 3 else "fewer"

    def read_resealed(data: bytes) -> str:
        path.write_bytes(b"".join(map(resealed, data.splitlines(keepends=True))))
        table = LeaseFile(path).read(_TTL_S, 5.0)
        table.request("store", "key-0", Holder(host="x", invocation="y", node_id="z"), now=100.0)
        to_json(table)
        return "all" if len(_leases(table)) == 3 else "fewer"

    contents = b"\n".join(open_seal(line) for line in good.splitlines()) + b"\n"
    return [
        Target("leases", good, read, "all"),
        Target("leases, sealed again", contents, read_resealed, "all", 0.6, every_value=1),
    ]


def _inside(telemetry: Path) -> Manifest:
    """Of a container that sees its telemetry root there."""
    path = telemetry / "container_runs" / "container-run-1" / "container_run_meta.json"
    return manifest(
        manifest=Located(container_path=str(path), host_path=str(path)),
        telemetry_root=Located(container_path=str(telemetry), host_path="/host/telemetry"),
    )


def container_targets(folder: Path) -> list[Target]:
    """A container run's manifest and the pointer to it: another program's fields stay, whatever they are."""
    whole = _inside(folder)
    write_manifest(whole)
    pointer, path = folder / POINTER_NAME, Path(whole.manifest.container_path)
    merged = merge_snapshot(path.read_text(encoding="utf-8"), "m.json", snapshot())
    path.write_text(merged, encoding="utf-8")
    good = path.read_bytes()

    def read(data: bytes) -> str:
        path.write_bytes(data)
        found = read_container_run(folder)
        require(found is None or found.manifest.container_path == str(path), "it is another's")
        if found:
            to_json(found)
            needs_prep(found, "tiny-dense", 1)
        for field in ("optimizations", "x"):
            change_manifest(whole, {(field, "serve"): 1})
            require(_but(data, field) == _but(path.read_bytes(), field), f"more than {field} has changed")
            path.write_bytes(data)
        update_manifest(path, lambda text: with_programs(text, str(path), {}))
        has_snapshot(path.read_text(encoding="utf-8"))
        read_manifest(path)
        return "read" if found else "not ours"

    def read_pointer(data: bytes) -> str:
        path.write_bytes(good)
        pointer.write_bytes(data)
        found = read_container_run(folder)
        require(found is None or found.run_id == whole.run_id, "it is another's")
        environ = {"HOST_TELEMETRY_ROOT": str(folder)}
        return "read" if find_manifest(environ) == path and found else "elsewhere"

    return [
        Target("manifest of a container run", good, read, "read", 0.7, every_value=4),
        Target("pointer to it", pointer.read_bytes(), read_pointer, "read", 0.7),
    ]


def _but(data: bytes, field: str) -> str:
    """A JSON object's text, in one form, without a field."""
    document = json.loads(data)
    document.pop(field, None)
    return json.dumps(document)


def facts_target(folder: Path) -> Target:
    """The file that RAYPREP_FACTS names."""
    folder.mkdir()
    path = folder / "facts.json"
    gpu = Gpu(uuid="GPU-1", name="NVIDIA H200", compute_capability="sm_90", sm_count=132, memory_bytes=141 << 30)
    good = json.dumps(
        {
            "gpus": [asdict(gpu)],
            "driver_version": "580.65.06",
            "cuda_version": "13.0",
            "signature": {"device_name": "NVIDIA H200", "sm_count": 132},
        }
    ).encode()

    def read(data: bytes) -> str:
        path.write_bytes(data)
        facts = read_facts({VARIABLE: str(path)})
        if facts is None:
            return REFUSED
        to_json(facts.on(signature()))
        choose_device(DeviceChoice.AUTO, visible_gpus(facts.inventory, {}), 1)
        return "read"

    return Target("facts of a host", good, read, "read", 0.7, every_value=1)


def fleet_targets(folder: Path) -> list[Target]:
    """All of these."""
    return [*lease_targets(folder / "fleet"), *container_targets(folder / "telemetry"), facts_target(folder / "facts")]
