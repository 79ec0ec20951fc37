"""Reports as LVM 2.03.16 wrote them in the lab (tests/data), and what is no report."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockd.domain.errors import StorageError
from blockd.storage.lvm_report import parse_lvs, parse_pvs, parse_vg_bytes

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


def test_pvs_and_vgs() -> None:
    (volume,) = parse_pvs((DATA / "pvs-2.03.16.json").read_bytes())
    assert (volume.device, volume.vg) == ("/dev/ubda", "t")
    free_bytes, extent_bytes = parse_vg_bytes((DATA / "vgs-2.03.16.json").read_bytes())
    assert extent_bytes == 4 * MIB
    assert 0 < free_bytes < 4096 * MIB


@pytest.mark.parametrize(
    "report",
    [b"", b"{", b"[]", b'{"report": 1}', b'{"report": [{"pv": []}]}', b"WARNING: x\n{}", b"\xff"],
)
def test_no_report_is_a_storage_error(report: bytes) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        parse_lvs(report)


def test_row_without_a_field_is_a_storage_error() -> None:
    with pytest.raises(StorageError):
        parse_lvs(b'{"report": [{"lv": [{"lv_name": "x"}]}]}')
