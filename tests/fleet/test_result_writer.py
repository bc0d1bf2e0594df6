"""What a fleet's driver writes at its end."""

from pathlib import Path

from rayprep.base.written import result_text
from rayprep.fleet.result_writer import write_unless_there
from rayprep.host.layout import Layout
from rayprep.model.stages import StageName, StageStatus
from tests.model.samples import prep_result


def test_a_file_that_the_coordinator_has_written_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "hosts" / "gpu-1" / "prep_result.json"
    result = prep_result({StageName.SERVE: StageStatus.OK})
    write_unless_there(Layout(tmp_path, tmp_path), path, result)
    written = path.stat().st_ino
    write_unless_there(Layout(tmp_path, tmp_path), path, result)
    assert path.stat().st_ino == written, "each write makes a new file"
    for other in (b"", b"\xff", result_text(prep_result({})).encode()):
        path.write_bytes(other)
        write_unless_there(Layout(tmp_path, tmp_path), path, result)
        assert path.read_text(encoding="utf-8") == result_text(result)
