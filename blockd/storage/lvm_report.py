"""LVM's JSON reports as values. Pure: tested on output captured from LVM 2.03.16.

Source: lvmreport(7): `--reportformat json --units b --nosuffix`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from blockd.domain.errors import StorageError

LV_FIELDS: Final = (
    "lv_name,lv_uuid,vg_uuid,lv_size,lv_tags,lv_attr,segtype,pool_lv,lv_permissions,zero,"
    "chunk_size,thin_id"
)
PV_FIELDS: Final = "pv_name,vg_name"


@dataclass(frozen=True, slots=True)
class LogicalVolume:
    """One LV. `kind` is LVM's segment type: `thin`, `thin-pool`, `linear`…"""

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


@dataclass(frozen=True, slots=True)
class PhysicalVolume:
    """One PV; `vg` is empty when it belongs to none."""

    device: str
    vg: str


def parse_lvs(report: bytes) -> list[LogicalVolume]:
    """Parse `lvs --all` with `LV_FIELDS`.

    Raises:
        StorageError: it is not what LVM writes.
    """
    return [
        LogicalVolume(
            name=row["lv_name"].strip("[]"),
            uuid=row["lv_uuid"],
            vg_uuid=row["vg_uuid"],
            size_bytes=int(row["lv_size"]),
            tags=frozenset(row["lv_tags"].split(",")) - {""},
            kind=row["segtype"],
            pool=row["pool_lv"].strip("[]"),
            writable=row["lv_permissions"].startswith("writeable"),
            zeroes=row["zero"] == "zero",
            chunk_bytes=int(row["chunk_size"] or 0),
        )
        for row in _rows(report, "lv")
    ]


def parse_pvs(report: bytes) -> list[PhysicalVolume]:
    """Parse `pvs` with `PV_FIELDS`."""
    return [PhysicalVolume(row["pv_name"], row["vg_name"]) for row in _rows(report, "pv")]


def parse_vg_bytes(report: bytes) -> tuple[int, int]:
    """Parse `vgs` with `vg_free,vg_extent_size`."""
    (row,) = _rows(report, "vg")
    return int(row["vg_free"]), int(row["vg_extent_size"])


def _rows(report: bytes, kind: str) -> list[dict[str, Any]]:
    try:
        document = json.loads(report)
        return [row for part in document["report"] for row in part[kind]]
    except (ValueError, KeyError, TypeError) as err:
        raise StorageError(f"LVM's report cannot be read: {report[:200]!r}") from err
