"""LVM's JSON reports as values. Pure: tested on output captured from LVM 2.03.16.

Source: lvmreport(7): `--reportformat json --units b --nosuffix`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from blockd.domain.errors import StorageError

Row = TypeVar("Row")

LV_FIELDS: Final = (
    "lv_name,lv_uuid,vg_uuid,lv_size,lv_tags,lv_attr,segtype,pool_lv,lv_permissions,zero,"
    "chunk_size,thin_id,origin,origin_size,lv_merging,transaction_id,"
    "lv_metadata_size,vg_free,vg_extent_size"
)
VG_FIELDS: Final = "vg_uuid,vg_size,vg_free,vg_extent_size"
PV_FIELDS: Final = "pv_name,vg_name"


_BEGIN: Final = re.compile(r"^\s*\{", re.MULTILINE)
_DECODER: Final = json.JSONDecoder()


class UnreadableReport(StorageError):
    """LVM ended with 0, and what it printed is no report."""


@dataclass(frozen=True, slots=True)
class LogicalVolume:
    """One LV.

    Attributes:
        size_bytes: what it takes: of a classic snapshot, its store's size.
        kind: LVM's segment type: `thin`, `thin-pool`, `linear`…
        origin: of a classic or thin snapshot, else empty.
        origin_bytes: how much of a classic snapshot's origin it pictures; 0 of all others.
        is_merging: a classic snapshot that is being merged, or its origin.
        transaction_id: of a thin pool, how many changes LVM has begun; of a thin LV, the pool's
            before it was made; 0 of all others.
        thin_id: of a thin LV, the number of its device within the pool; 0 of all others.
        metadata_bytes: of a thin pool, its metadata's size; 0 of all others.
        group_free_bytes: what no LV of the volume group has.
        extent_bytes: what the volume group hands out at once.
    """

    name: str
    uuid: str
    vg_uuid: str
    size_bytes: int
    tags: frozenset[str]
    kind: str
    pool: str
    writable: bool
    zeroes: bool
    chunk_bytes: int
    origin: str = ""
    origin_bytes: int = 0
    is_merging: bool = False
    transaction_id: int = 0
    thin_id: int = 0
    metadata_bytes: int = 0
    group_free_bytes: int = 0
    extent_bytes: int = 1


@dataclass(frozen=True, slots=True)
class VolumeGroup:
    """One volume group, in bytes; `free_bytes` is what no LV has."""

    uuid: str
    size_bytes: int
    free_bytes: int
    extent_bytes: int


@dataclass(frozen=True, slots=True)
class PhysicalVolume:
    """One PV; `vg` is empty when it belongs to none."""

    device: str
    vg: str


def parse_lvs(report: bytes) -> list[LogicalVolume]:
    """Parse `lvs --all` with `LV_FIELDS`.

    Raises:
        UnreadableReport: it is not what LVM writes.
    """
    lvs = _rows(
        report,
        "lv",
        lambda row: LogicalVolume(
            name=row["lv_name"].strip("[]"),
            uuid=row["lv_uuid"],
            vg_uuid=row["vg_uuid"],
            size_bytes=int(row["lv_size"]),
            tags=frozenset(row["lv_tags"].split(",")) - {""},
            kind=row["segtype"],
            pool=row["pool_lv"].strip("[]"),
            # As LVM notes it: of one that is not active it says `unknown` or `read-only`, and
            # `read-only-override` of a device that is read-only against what is noted.
            writable=row["lv_permissions"] != "read-only",
            zeroes=row["zero"] == "zero",
            chunk_bytes=int(row["chunk_size"] or 0),
            origin=row["origin"].strip("[]"),
            # Thin snapshots have one, too, but take nothing of it.
            origin_bytes=int(row["origin_size"] or 0) if not row["pool_lv"] else 0,
            is_merging=bool(row["lv_merging"]),
            transaction_id=int(row["transaction_id"] or 0),
            thin_id=int(row["thin_id"] or 0),
            metadata_bytes=int(row.get("lv_metadata_size") or 0),
            group_free_bytes=int(row.get("vg_free") or 0),
            extent_bytes=int(row.get("vg_extent_size") or 1),
        ),
    )
    # With `segtype` asked for, LVM has a row for each segment: one that has grown comes again.
    return list({lv.uuid: lv for lv in lvs}.values())


def parse_pvs(report: bytes) -> list[PhysicalVolume]:
    """Parse `pvs` with `PV_FIELDS`."""
    return _rows(report, "pv", lambda row: PhysicalVolume(row["pv_name"], row["vg_name"]))


def parse_vg(report: bytes) -> VolumeGroup:
    """Parse `vgs` with `VG_FIELDS`."""
    groups = _rows(
        report,
        "vg",
        lambda row: VolumeGroup(
            row["vg_uuid"], int(row["vg_size"]), int(row["vg_free"]), int(row["vg_extent_size"])
        ),
    )
    if len(groups) != 1:
        raise UnreadableReport(f"LVM reports {len(groups)} volume groups instead of one")
    return groups[0]


def _rows(report: bytes, kind: str, read: Callable[[dict[str, str]], Row]) -> list[Row]:
    # Warnings before and hints behind it are no part of it, however they got there.
    text = report.decode(errors="replace")
    begin = _BEGIN.search(text)
    try:
        document, _ = _DECODER.raw_decode(text, len(text) if begin is None else begin.end() - 1)
        return [read(row) for part in document["report"] for row in part[kind]]
    except (ValueError, KeyError, TypeError) as err:
        raise UnreadableReport(f"LVM's report cannot be read: {report[:200]!r}") from err
