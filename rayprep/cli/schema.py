"""`rayprep schema`: the JSON Schema of each file that rayprep writes, generated from its model."""

import json
from typing import Annotated

import typer

from rayprep.base.errors import BadRequest
from rayprep.base.records import Record
from rayprep.cli import output
from rayprep.cli.options import Debug
from rayprep.doctor.findings import DoctorReport
from rayprep.host.locks import Holder
from rayprep.model.completion import Completion
from rayprep.model.container_manifest import Manifest
from rayprep.model.events import Event
from rayprep.model.fleet.leases import LeaseTable
from rayprep.model.fleet.result import FleetResult
from rayprep.model.fleet.status import FleetStatus
from rayprep.model.forecast import Forecast
from rayprep.model.result import PrepResult
from rayprep.model.snapshot import ProfileSnapshot
from rayprep.store.markers import Marker
from rayprep.store.package.manifest import PackageManifest, PackageReport
from rayprep.store.reset.report import ResetReport

FILES: dict[str, type[Record]] = {
    "prep_result": PrepResult,
    "fleet_result": FleetResult,
    "fleet_status": FleetStatus,
    "lease_table": LeaseTable,
    "profile_snapshot": ProfileSnapshot,
    "container_run_meta": Manifest,
    "completion": Completion,
    "marker": Marker,
    "lock_holder": Holder,
    "event": Event,
    "forecast": Forecast,
    "reset_report": ResetReport,
    "doctor_report": DoctorReport,
    "package_manifest": PackageManifest,
    "package_report": PackageReport,
}


def command(
    name: Annotated[str, typer.Argument(help="Such as prep_result; a wrong name lists them all.")],
    debug: Debug = False,
) -> None:
    """Print the JSON Schema of a file that rayprep writes."""
    output.json_text(json.dumps(schema(name), indent=2))


def schema(name: str) -> dict[str, object]:
    """JSON Schema 2020-12. Raises BadRequest for a name that is not in FILES."""
    if name not in FILES:
        raise BadRequest(f"no schema {name!r}", hint="there are " + ", ".join(FILES))
    kind = FILES[name]
    # A completion is written whole, and is not read where a field is missing.
    document = kind.model_json_schema(mode="serialization" if kind is Completion else "validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **document}
