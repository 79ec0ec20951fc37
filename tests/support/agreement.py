"""Catalog, volume group and device-mapper must say the same once nothing is under way."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from blockd.domain.effects import SideEffects
from blockd.storage.dm import DeviceMapper, lv_device_name, open_device_mapper
from tests.support.daemon import Place


def expect_agreement(place: Place) -> dict[str, dict[str, str]]:
    """Compare all three; the daemon is idle, or stopped.

    Returns:
        Our LVs as LVM reports them, by name.
    """
    with closing(sqlite3.connect(f"file:{place.catalog}?mode=ro", uri=True)) as catalog:
        (catalog_id,) = catalog.execute(
            "SELECT value FROM meta WHERE key = 'catalog_id'"
        ).fetchone()
        intents = catalog.execute("SELECT verb, phase, args FROM intents").fetchall()
        jobs = catalog.execute("SELECT kind, phase, args FROM jobs WHERE phase <> ''").fetchall()
        rows = [
            _Row(*row)
            for row in catalog.execute(
                "SELECT id, disk, size_bytes, status, error, storage_class, 1, NULL FROM volumes"
                " UNION ALL SELECT id, disk, size_bytes, status, error, storage_class, 0,"
                " origin_disk FROM snapshots"
            )
        ]
        kept = catalog.execute("SELECT disk, storage_class FROM kept_origins").fetchall()
    assert intents == [], intents
    assert jobs == []
    passing = [row for row in rows if row.status in ("creating", "updating", "exporting")]
    assert passing == []

    tag = f"blockd.{catalog_id}"
    found: dict[str, dict[str, str]] = {}
    lvs = _lvs(place)
    with open_device_mapper(SideEffects()) as mapper:
        for name, (kind, vg) in place.classes.items():
            here = [lv for lv in lvs if lv["vg_name"] == vg]
            ours = {lv["lv_name"]: lv for lv in here if tag in lv["lv_tags"].split(",")}
            of_class = [row for row in rows if row.storage_class == name]
            # Of an available volume, `error` says why its last change came to nothing.
            whole = [
                row
                for row in of_class
                if row.status != "error" and not (row.error and row.status == "deleted")
            ]
            wanted = {row.disk for row in whole} | {disk for disk, own in kept if own == name}
            assert set(ours) == wanted, f"LVs of ours in {vg} and rows of the catalog differ"
            if kind == "thick":
                _expect_snapshots(vg, ours, whole, mapper)
            else:
                _expect_pool(vg, here, mapper)
            _expect_fronts(vg, f"BLOCKD-{name}-{catalog_id}-", of_class, mapper)
            found |= ours
    live = {row.id for row in rows if row.is_volume and row.status == "available"}
    links = {path.name for path in Path("/dev/blockd").glob("*")}
    assert links == live, "links and live volumes differ"
    return found


class _Row(NamedTuple):
    """A volume or snapshot of the catalog."""

    id: str
    disk: str
    size_bytes: int
    status: str
    error: str | None
    storage_class: str
    is_volume: int
    origin: str | None


def _expect_pool(vg: str, lvs: list[dict[str, str]], mapper: DeviceMapper) -> None:
    """Of a thin class."""
    (pool,) = [lv for lv in lvs if lv["lv_name"] == "pool"]
    # Without a volume that uses it LVM puts no second device on top of it.
    status = _status(f"{vg}-pool-tpool", mapper) or _status(f"{vg}-pool", mapper)
    assert status[0] == pool["transaction_id"], "the kernel and LVM count differently"
    assert status[3] == "-", "a snapshot of the pool's metadata is reserved"
    ours = mapper.devices(f"{vg}-blockd--")
    active = [device.name for device in ours if device.read_only]
    assert active == [], "disks of snapshots are active"


def _expect_snapshots(
    vg: str, ours: dict[str, dict[str, str]], rows: list[_Row], mapper: DeviceMapper
) -> None:
    """Of a thick class: each lies over the origin that the catalog says, whole; none is merging."""
    for row in rows:
        lv = ours[row.disk]
        assert lv["origin"] == (row.origin or ""), (row.disk, lv["origin"], row.origin)
        assert lv["lv_attr"][0] not in "SO", f"{row.disk} is being merged"
        if row.origin:
            status = _status(lv_device_name(vg, row.disk), mapper)
            assert "/" in "".join(status[:1]), f"{row.disk} is {status}"


def _status(name: str, mapper: DeviceMapper) -> list[str]:
    """The words that a device's one target says; none if it is not there."""
    info = mapper.info_of_name(name)
    return [] if info is None else mapper.status(info.uuid)[0].params.split()


def _expect_fronts(vg: str, prefix: str, rows: list[_Row], mapper: DeviceMapper) -> None:
    """Each live volume has one, of its size and over its disk; there is no other."""
    there = {
        device.uuid.removeprefix(prefix): device
        for device in mapper.devices("blockd-")
        if device.uuid.startswith(prefix)
    }
    live = {row.id: row for row in rows if row.is_volume and row.status == "available"}
    assert set(there) == set(live), "fronts and live volumes differ"
    for volume_id, row in live.items():
        front = there[volume_id]
        assert not front.suspended, f"front of {volume_id} is suspended"
        (target,) = mapper.table(front.uuid)
        assert target.length_sectors * 512 == row.size_bytes
        lower = mapper.info_of_number(target.params.split()[0])
        assert lower is not None
        assert lower.name == lv_device_name(vg, row.disk)
        assert os.readlink(f"/dev/blockd/{volume_id}") == f"../dm-{front.minor}"


def foreign_lvs(place: Place) -> dict[str, str]:
    """Every LV without a tag of the catalog, with its uuid and attributes."""
    with sqlite3.connect(f"file:{place.catalog}?mode=ro", uri=True) as catalog:
        (catalog_id,) = catalog.execute(
            "SELECT value FROM meta WHERE key = 'catalog_id'"
        ).fetchone()
    catalog.close()
    return {
        lv["lv_name"]: f"{lv['lv_uuid']} {lv['lv_attr']} {lv['lv_tags']}"
        for lv in _lvs(place)
        if not {f"blockd.{catalog_id}", f"blockd-catalog.{catalog_id}"}
        & set(lv["lv_tags"].split(","))
        and lv["segtype"] == ("thin" if place.kind == "thin" else "linear")
    }


def _lvs(place: Place) -> list[dict[str, str]]:
    fields = "vg_name,lv_name,lv_uuid,lv_attr,lv_tags,segtype,transaction_id,origin,thin_id"
    vgs = [vg for _, vg in place.classes.values()]
    report = place.lvm("lvs", "--all", "--reportformat", "json", "-o", fields, *vgs)
    found: list[dict[str, str]] = json.loads(report)["report"][0]["lv"]
    return [{**lv, "lv_name": lv["lv_name"].strip("[]")} for lv in found]
