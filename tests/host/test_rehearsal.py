"""The facts of a host that is not there: whatever the file says, it is a signature or one line."""

import json
from pathlib import Path

import pytest

from rayprep.base.errors import BadRequest
from rayprep.host.rehearsal import VARIABLE, Facts, read_facts
from tests.model.samples import signature


def facts(folder: Path, document: object) -> Facts:
    path = folder / "facts.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    found = read_facts({VARIABLE: str(path)})
    assert found is not None
    return found


def test_the_fields_of_the_file_take_the_place_of_the_hosts(tmp_path: Path) -> None:
    found = facts(tmp_path, {"signature": {"sm_count": 132, "cxx": None}}).on(signature(sm_count=1))
    assert (found.sm_count, found.cxx) == (132, None)
    assert read_facts({}) is None


@pytest.mark.parametrize("fields", [{"sm_count": "many"}, {"sm_counts": 132}, {"device_name": None}])
def test_a_field_that_no_host_has_is_named_in_one_line(tmp_path: Path, fields: dict[str, object]) -> None:
    with pytest.raises(BadRequest, match=next(iter(fields))) as caught:
        facts(tmp_path, {"signature": fields}).on(signature())
    assert len(caught.value.line.splitlines()) == 1


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=VARIABLE):
        facts(tmp_path, [])
