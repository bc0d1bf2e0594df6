"""The lease table on disk: what the next coordinator knows of the last one's grants."""

from pathlib import Path

import pytest

from rayprep.base.errors import ErrorType, HostUnfit
from rayprep.fleet.coordinator import lease_file
from rayprep.fleet.coordinator.lease_file import LeaseFile
from rayprep.model.fleet.leases import Granted, Holder, LeaseTable

TTL_S = 30.0


def who(number: int) -> Holder:
    return Holder(host=f"gpu-{number}", invocation="run", node_id="n")


def grant(file: LeaseFile, table: LeaseTable, number: int) -> LeaseTable:
    table, answer = table.request("store", f"key-{number}", who(number), now=1.0)
    assert isinstance(answer, Granted)
    file.keep(table, "store", f"key-{number}")
    return table


def holders(table: LeaseTable) -> dict[str, str]:
    return {key: lease.held.holder.host for key, lease in table.leases.get("store", {}).items() if lease.held}


def test_where_no_coordinator_lived_there_is_nothing_to_wait_for(tmp_path: Path) -> None:
    assert LeaseFile(tmp_path / "leases").read(TTL_S, 5.0) == LeaseTable(ttl_s=TTL_S)


@pytest.mark.parametrize("least", [1, 2, 1000])
def test_the_next_coordinator_knows_every_grant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: int) -> None:
    monkeypatch.setattr(lease_file, "LEAST_GRANTS", least)
    file, table = LeaseFile(tmp_path / "sub" / "leases"), LeaseTable(ttl_s=TTL_S)
    for number in range(6):
        table = grant(file, table, number)
    found = LeaseFile(tmp_path / "sub" / "leases").read(TTL_S, 100.0)
    assert holders(found) == {f"key-{number}": f"gpu-{number}" for number in range(6)}
    assert (found.restored_at, found.leases["store"]["key-5"].epoch) == (100.0, 1)


def test_a_second_grant_of_a_key_takes_the_place_of_the_first(tmp_path: Path) -> None:
    file, table = LeaseFile(tmp_path / "leases"), LeaseTable(ttl_s=TTL_S)
    table = grant(file, table, 0).release("store", "key-0", who(0), 1, now=2.0)
    table, _ = table.request("store", "key-0", who(7), now=3.0)
    file.keep(table, "store", "key-0")
    lease = file.read(TTL_S, 9.0).leases["store"]["key-0"]
    assert (lease.epoch, lease.held and lease.held.holder.host) == (2, "gpu-7")


def test_a_line_that_is_there_twice_brings_no_earlier_holder_back(tmp_path: Path) -> None:
    path = tmp_path / "leases"
    file, table = LeaseFile(path), LeaseTable(ttl_s=TTL_S)
    table = grant(file, grant(file, table, 1), 0).release("store", "key-0", who(0), 1, now=2.0)
    table, _ = table.request("store", "key-0", who(7), now=3.0)
    file.keep(table, "store", "key-0")
    first, earlier, later = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + earlier + later + earlier)
    assert holders(LeaseFile(path).read(TTL_S, 9.0)) == {"key-0": "gpu-7", "key-1": "gpu-1"}


@pytest.mark.parametrize("cut", [1, 40])
def test_half_a_line_is_as_if_it_had_not_been_granted(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "leases"
    file, table = LeaseFile(path), LeaseTable(ttl_s=TTL_S)
    for number in range(2):
        table = grant(file, table, number)
    path.write_bytes(path.read_bytes()[: -1 - cut])
    again = LeaseFile(path)
    found = again.read(TTL_S, 0.0)
    assert holders(found) == {"key-0": "gpu-0"}
    # The new coordinator writes the whole before it appends: nothing follows upon half a line.
    later, answer = found.request("store", "key-9", who(9), now=TTL_S + 1)
    assert isinstance(answer, Granted)
    again.keep(later, "store", "key-9")
    assert holders(LeaseFile(path).read(TTL_S, 0.0)) == {"key-9": "gpu-9", "key-0": "gpu-0"}


def test_a_file_that_cannot_be_written_or_read_is_named_and_kept_whole_once_it_can(tmp_path: Path) -> None:
    folder = tmp_path / "sub"
    file, table = LeaseFile(folder / "leases"), LeaseTable(ttl_s=TTL_S)
    table = grant(file, table, 0)
    folder.rename(tmp_path / "aside")
    folder.touch()  # so that even root cannot make the folder anew
    for _ in range(2):
        with pytest.raises(HostUnfit, match=f"^lease file {folder}/leases cannot be written: ") as raised:
            grant(file, table, 1)
        assert raised.value.error_type is ErrorType.PERMISSIONS_UNEXPECTED
    with pytest.raises(HostUnfit, match=f"^lease file {folder}/leases cannot be read: Not a directory$"):
        LeaseFile(folder / "leases").read(TTL_S, 0.0)
    folder.unlink()
    grant(file, table, 1)
    assert len(holders(file.read(TTL_S, 0.0))) == 2


def test_a_damaged_table_is_still_a_sign_of_an_earlier_life(tmp_path: Path) -> None:
    path = tmp_path / "leases"
    path.write_text("no table\n", encoding="utf-8")
    assert LeaseFile(path).read(TTL_S, 5.0).restored_at == 5.0


def test_no_damaged_bit_names_another_holder(tmp_path: Path) -> None:
    path = tmp_path / "leases"
    file, table = LeaseFile(path), LeaseTable(ttl_s=TTL_S)
    for number in range(2):
        table = grant(file, table, number)
    whole, known = path.read_bytes(), holders(table)
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        found = LeaseFile(path).read(TTL_S, 5.0)
        assert holders(found).items() <= known.items()
        assert found.restored_at == 5.0, "whoever holds what was lost is waited for"


def test_a_table_of_an_earlier_version_is_a_sign_of_an_earlier_life(tmp_path: Path) -> None:
    path = tmp_path / "leases"
    table = grant(LeaseFile(path), LeaseTable(ttl_s=TTL_S), 0)
    path.write_text(table.model_dump_json() + "\n", encoding="utf-8")
    assert LeaseFile(path).read(TTL_S, 5.0) == LeaseTable(ttl_s=TTL_S).restored(5.0)
