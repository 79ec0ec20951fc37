"""Catalog, volume group and device-mapper must say the same once nothing is under way."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from pathlib import Path

from tests.support.daemon import VG, Place


def expect_agreement(place: Place) -> None:
    """Compare all three; the daemon is idle, or stopped."""
    with sqlite3.connect(f"file:{place.catalog}?mode=ro", uri=True) as catalog:
        (catalog_id,) = catalog.execute(
            "SELECT value FROM meta WHERE key = 'catalog_id'"
        ).fetchone()
        intents = catalog.execute("SELECT verb, phase, args FROM intents").fetchall()
        jobs = catalog.execute("SELECT kind, phase, args FROM jobs WHERE phase <> ''").fetchall()
        rows = catalog.execute(
            "SELECT id, disk, size_bytes, status, error, 1 FROM volumes"
            " UNION ALL SELECT id, disk, size_bytes, status, error, 0 FROM snapshots"
        ).fetchall()
        kept = {disk for (disk,) in catalog.execute("SELECT disk FROM kept_origins")}
        origins = dict(catalog.execute("SELECT disk, origin_disk FROM snapshots"))
    catalog.close()
    assert intents == []
    assert jobs == []
    passing = [row for row in rows if row[3] in ("creating", "updating", "exporting")]
    assert passing == []

    lvs = _lvs(place)
    tag = f"blockd.{catalog_id}"
    ours = {lv["lv_name"]: lv for lv in lvs if tag in lv["lv_tags"].split(",")}
    # Of an available volume, `error` says why its last change came to nothing.
    broken = {id_ for id_, _, _, status, error, _ in rows if error and status == "deleted"}
    wanted = {row[1] for row in rows if row[3] != "error" and row[0] not in broken}
    assert set(ours) == wanted | kept, "LVs of ours and rows of the catalog differ"
    if place.kind == "thick":
        _expect_snapshots(ours, {disk: origins.get(disk) for disk in wanted})
    else:
        _expect_pool(lvs)

    fronts = _fronts(catalog_id, place.storage_class)
    live = {
        id_: (disk, size)
        for id_, disk, size, status, _, is_volume in rows
        if is_volume and status == "available"
    }
    assert set(fronts) == set(live), "fronts and live volumes differ"
    for volume_id, (disk, size_bytes) in live.items():
        state, sectors, lower, minor = fronts[volume_id]
        assert state == "ACTIVE", f"front of {volume_id} is {state}"
        assert sectors * 512 == size_bytes
        assert lower == f"{VG}-{disk.replace('-', '--')}"
        assert os.readlink(f"/dev/blockd/{volume_id}") == f"../dm-{minor}"
    links = {path.name for path in Path("/dev/blockd").glob("*")}
    assert links == set(live), "links and live volumes differ"


def _expect_pool(lvs: list[dict[str, str]]) -> None:
    """Of a thin class."""
    (pool,) = [lv for lv in lvs if lv["lv_name"] == "pool"]
    table = subprocess.run(
        ["/sbin/dmsetup", "status", f"{VG}-pool-tpool"], capture_output=True, text=True, check=True
    )
    status = table.stdout.split()
    assert status[3] == pool["transaction_id"], "the kernel and LVM count differently"
    assert status[6] == "-", "a snapshot of the pool's metadata is reserved"
    assert _active_snapshots() == [], "disks of snapshots are active"


def _expect_snapshots(ours: dict[str, dict[str, str]], origins: dict[str, str | None]) -> None:
    """Of a thick class: each lies over the origin that the catalog says, whole; none is merging."""
    for disk, origin in origins.items():
        lv = ours[disk]
        assert lv["origin"] == (origin or ""), (disk, lv["origin"], origin)
        assert lv["lv_attr"][0] not in "SO", f"{disk} is being merged"
        if not origin:
            continue
        name = f"{VG}-{disk.replace('-', '--')}"
        status = subprocess.run(
            ["/sbin/dmsetup", "status", name], capture_output=True, text=True, check=True
        ).stdout.split()
        assert status[2] == "snapshot"
        assert "/" in status[3], f"{disk} is {status[3]}"


def _active_snapshots() -> list[str]:
    """Disks of ours that are read-only and active."""
    done = subprocess.run(
        ["/sbin/dmsetup", "info", "-c", "--noheadings", "-o", "name,readonly"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    prefix = f"{VG}-blockd--"
    names = [line.split(":")[0] for line in done.stdout.splitlines() if "Read-only" in line]
    return [name for name in names if name.startswith(prefix)]


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
    fields = "lv_name,lv_uuid,lv_attr,lv_tags,segtype,transaction_id,origin"
    report = place.lvm("lvs", "--all", "--reportformat", "json", "-o", fields, VG)
    found: list[dict[str, str]] = json.loads(report)["report"][0]["lv"]
    return [{**lv, "lv_name": lv["lv_name"].strip("[]")} for lv in found]


def _fronts(catalog_id: str, storage_class: str) -> dict[str, tuple[str, int, str, str]]:
    """Of each front: its state, length in sectors, the device beneath, its minor."""
    info = subprocess.run(
        ["/sbin/dmsetup", "info", "-c", "--noheadings", "--separator", " ",
         "-o", "name,uuid,suspended,major,minor"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    devices = [line.split() for line in info.splitlines() if len(line.split()) == 5]
    names = {f"{major}:{minor}": name for name, _, _, major, minor in devices}
    found = {}
    for name, uuid, suspended, _, minor in devices:
        prefix = f"BLOCKD-{storage_class}-{catalog_id}-"
        if uuid.startswith(prefix):
            table = subprocess.run(
                ["/sbin/dmsetup", "table", name], capture_output=True, text=True, check=True
            ).stdout.split()
            state = "ACTIVE" if suspended == "Active" else suspended
            found[uuid.removeprefix(prefix)] = (state, int(table[1]), names[table[3]], minor)
    return found
