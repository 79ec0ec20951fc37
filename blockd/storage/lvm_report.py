"""LVM's JSON reports as values. Pure: tested on output captured from LVM 2.03.16.

Source: lvmreport(7): `--reportformat json --units b --nosuffix`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from blockd.domain.errors import StorageError

Row = TypeVar("Row")

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
    return _rows(
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
            writable=row["lv_permissions"].startswith("writeable"),
            zeroes=row["zero"] == "zero",
            chunk_bytes=int(row["chunk_size"] or 0),
        ),
    )


def parse_pvs(report: bytes) -> list[PhysicalVolume]:
    """Parse `pvs` with `PV_FIELDS`."""
    return _rows(report, "pv", lambda row: PhysicalVolume(row["pv_name"], row["vg_name"]))


def parse_vg_bytes(report: bytes) -> tuple[int, int]:
    """Parse `vgs` with `vg_free,vg_extent_size`."""
    (sizes,) = _rows(report, "vg", lambda row: (int(row["vg_free"]), int(row["vg_extent_size"])))
    return sizes


def _rows(report: bytes, kind: str, read: Callable[[dict[str, str]], Row]) -> list[Row]:
    try:
        document = json.loads(report)
        return [read(row) for part in document["report"] for row in part[kind]]
    except (ValueError, KeyError, TypeError) as err:
        raise StorageError(f"LVM's report cannot be read: {report[:200]!r}") from err
