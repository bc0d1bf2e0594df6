"""A host that is not there: GPUs and signature fields from a file, for a rehearsal of a fleet on other hardware.

`RAYPREP_FACTS` names a JSON file, `{"gpus": [...], "driver_version": ..., "cuda_version": ..., "signature": {...}}`:
the GPUs in place of what NVML shows, and signature fields in place of what was read. All else is the real host's.
"""

from collections.abc import Mapping

from pydantic import Field, ValidationError

from rayprep.base.errors import BadRequest
from rayprep.base.records import Record, first_problem, read_tolerant
from rayprep.host.files import read_bytes
from rayprep.host.gpu import Gpu, GpuInventory
from rayprep.model.signature import Signature

VARIABLE = "RAYPREP_FACTS"


class Facts(Record):
    """What the file says."""

    gpus: tuple[Gpu, ...] = ()
    driver_version: str | None = None
    cuda_version: str | None = None
    signature: dict[str, str | int | None] = Field(default_factory=dict)

    @property
    def inventory(self) -> GpuInventory:
        return GpuInventory(gpus=self.gpus, driver_version=self.driver_version, cuda_version=self.cuda_version)

    def on(self, signature: Signature) -> Signature:
        """`signature` with the fields that the file names.

        Raises:
            BadRequest: there is no such field, or it cannot be that.
        """
        try:
            return Signature.model_validate({**signature.model_dump(), **self.signature})
        except ValidationError as error:
            problem = first_problem(error)
            raise BadRequest(f"{VARIABLE}: the host's signature cannot have {problem}", hint="mend the file") from None


def read_facts(environ: Mapping[str, str]) -> Facts | None:
    """None where the variable is not set. Raises BadRequest where its file cannot be read."""
    name = environ.get(VARIABLE)
    if not name:
        return None
    try:
        return read_tolerant(Facts, read_bytes(name))
    except (OSError, ValidationError) as error:
        why = str(error).splitlines()[0]
        raise BadRequest(f"{VARIABLE}={name} cannot be read: {why}", hint="mend the file, or unset it") from None
