"""Reports as LVM 2.03.16 wrote them in the lab (tests/data), and what is no report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blockd.domain.errors import StorageError
from blockd.storage.lvm_report import UnreadableReport, parse_lvs, parse_pvs, parse_vg

DATA = Path(__file__).parents[1] / "data"
MIB = 1024**2


def test_lvs_of_pool_volume_snapshot_and_plain_lv() -> None:
    found = {lv.name: lv for lv in parse_lvs((DATA / "lvs-2.03.16.json").read_bytes())}
    assert set(found) == {
        *("pool", "pool_tdata", "pool_tmeta", "lvol0_pmspare"),
        *("v1", "s1", "plain"),
    }
    pool, volume, snapshot = found["pool"], found["v1"], found["s1"]
    assert (pool.kind, pool.zeroes, pool.chunk_bytes) == ("thin-pool", True, 65536)
    assert (volume.kind, volume.size_bytes, volume.pool) == ("thin", 100 * MIB, "pool")
    assert volume.writable
    assert not snapshot.writable
    assert snapshot.tags == {"blockd.a", "second"}
    assert found["plain"].tags == frozenset()
    assert len(pool.uuid) == len(pool.vg_uuid) == 38


@pytest.mark.parametrize(
    ("said", "writable"),
    [("writeable", True), ("unknown", True), ("read-only-override", True), ("read-only", False)],
)
def test_lv_that_is_not_active_is_as_writable_as_when_it_is(said: str, writable: bool) -> None:
    report = json.loads((DATA / "lvs-2.03.16.json").read_bytes())
    for row in report["report"][0]["lv"]:
        row["lv_permissions"] = said
    assert {lv.writable for lv in parse_lvs(json.dumps(report).encode())} == {writable}


def test_lvs_of_a_grown_origin_and_its_snapshots_one_being_merged() -> None:
    lvs = parse_lvs((DATA / "lvs-thick-2.03.16.json").read_bytes())
    found = {lv.name: lv for lv in lvs}
    assert len(found) == len(lvs), "LVM has a row for each of the origin's two segments"
    origin, kept, merging = found["o"], found["c1"], found["c2"]
    assert (origin.kind, origin.size_bytes, origin.origin) == ("linear", 96 * MIB, "")
    assert (kept.size_bytes, kept.origin, kept.origin_bytes) == (8 * MIB, "o", 64 * MIB)
    assert (origin.is_merging, kept.is_merging, merging.is_merging) == (True, False, True)
    assert merging.origin == "o"
    assert found["s1"].origin == "v1"
    assert (found["s1"].origin_bytes, found["plain"].is_merging) == (0, False)


def test_pvs_and_vgs() -> None:
    (volume,) = parse_pvs((DATA / "pvs-2.03.16.json").read_bytes())
    assert (volume.device, volume.vg) == ("/dev/ubda", "t")
    group = parse_vg((DATA / "vgs-2.03.16.json").read_bytes())
    assert group.extent_bytes == 4 * MIB
    assert 0 < group.free_bytes < group.size_bytes < 4096 * MIB
    assert len(group.uuid) == 38


@pytest.mark.parametrize(
    "report",
    [b"", b"{", b"[]", b'{"report": 1}', b'{"report": [{"pv": []}]}', b"WARNING: x\n{}", b"\xff"],
)
def test_no_report_is_a_storage_error(report: bytes) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        parse_lvs(report)


@pytest.mark.parametrize("before", [b"  WARNING: Device /dev/x has { 4 }.\n", b"\n  Archiving.\n"])
def test_report_between_warnings_and_hints_is_read(before: bytes) -> None:
    report = (DATA / "vgs-2.03.16.json").read_bytes()
    assert parse_vg(before + report + b"  Volume group {archived}.\n") == parse_vg(report)


def test_hint_within_a_report_is_no_report() -> None:
    """As lvmteam/lvm2 issue 137 has it."""
    report = (DATA / "lvs-2.03.16.json").read_bytes()
    middle = report.index(b"\n", len(report) // 2) + 1
    with pytest.raises(UnreadableReport):
        parse_lvs(report[:middle] + b"  Consider pruning x VG archive.\n" + report[middle:])


def test_two_volume_groups_are_not_one() -> None:
    report = (DATA / "vgs-2.03.16.json").read_bytes()
    begin = report.index(b"[", report.index(b'"vg"')) + 1
    end = report.index(b"]", begin)
    with pytest.raises(UnreadableReport, match="2 volume groups"):
        parse_vg(report[:end] + b"," + report[begin:end] + report[end:])


def test_row_without_a_field_is_a_storage_error() -> None:
    with pytest.raises(StorageError):
        parse_lvs(b'{"report": [{"lv": [{"lv_name": "x"}]}]}')
