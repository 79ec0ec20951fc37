"""Catalog, volume group and device-mapper must say the same once nothing is under way."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from dataclasses import dataclass
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
    devices = _devices()
    if place.kind == "thick":
        _expect_snapshots(ours, {disk: origins.get(disk) for disk in wanted}, devices)
    else:
        _expect_pool(lvs, devices)

    prefix = f"BLOCKD-{place.storage_class}-{catalog_id}-"
    fronts = {
        device.uuid.removeprefix(prefix): device
        for device in devices.values()
        if device.uuid.startswith(prefix)
    }
    names = {device.number: name for name, device in devices.items()}
    live = {
        id_: (disk, size)
        for id_, disk, size, status, _, is_volume in rows
        if is_volume and status == "available"
    }
    assert set(fronts) == set(live), "fronts and live volumes differ"
    for volume_id, (disk, size_bytes) in live.items():
        front = fronts[volume_id]
        assert front.state == "Active", f"front of {volume_id} is {front.state}"
        _, length, kind, lower, _ = front.table.split()
        assert (kind, int(length) * 512) == ("linear", size_bytes)
        assert names[lower] == _device_name(disk)
        minor = front.number.partition(":")[2]
        assert os.readlink(f"/dev/blockd/{volume_id}") == f"../dm-{minor}"
    links = {path.name for path in Path("/dev/blockd").glob("*")}
    assert links == set(live), "links and live volumes differ"


def _expect_pool(lvs: list[dict[str, str]], devices: dict[str, _Device]) -> None:
    """Of a thin class."""
    (pool,) = [lv for lv in lvs if lv["lv_name"] == "pool"]
    status = devices[f"{VG}-pool-tpool"].status.split()
    assert status[3] == pool["transaction_id"], "the kernel and LVM count differently"
    assert status[6] == "-", "a snapshot of the pool's metadata is reserved"
    sealed = [name for name, device in devices.items() if device.access == "Read-only"]
    ours = [name for name in sealed if name.startswith(_device_name("blockd-"))]
    assert ours == [], "disks of snapshots are active"


def _expect_snapshots(
    ours: dict[str, dict[str, str]], origins: dict[str, str | None], devices: dict[str, _Device]
) -> None:
    """Of a thick class: each lies over the origin that the catalog says, whole; none is merging."""
    for disk, origin in origins.items():
        lv = ours[disk]
        assert lv["origin"] == (origin or ""), (disk, lv["origin"], origin)
        assert lv["lv_attr"][0] not in "SO", f"{disk} is being merged"
        if not origin:
            continue
        _, _, kind, use, *_ = devices[_device_name(disk)].status.split()
        assert kind == "snapshot"
        assert "/" in use, f"{disk} is {use}"


@dataclass
class _Device:
    """What dmsetup says of one; table and status are lines of words, without the name."""

    uuid: str
    state: str
    access: str
    number: str
    table: str = ""
    status: str = ""


def _devices() -> dict[str, _Device]:
    """All of device-mapper, by name."""
    fields = "name,uuid,suspended,readonly,major,minor"
    said = _dmsetup("info", "-c", "--noheadings", "--separator", "|", "-o", fields)
    found = {}
    for line in said:
        name, uuid, state, access, major, minor = line.split("|")
        found[name] = _Device(uuid, state, access, f"{major}:{minor}")
    for what in ("table", "status"):
        for line in _dmsetup(what):
            name, _, rest = line.partition(": ")
            setattr(found[name], what, rest)
    return found


def _dmsetup(*argv: str) -> list[str]:
    done = subprocess.run(["/sbin/dmsetup", *argv], capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if line != "No devices found"]


def _device_name(disk: str) -> str:
    return f"{VG}-{disk.replace('-', '--')}"


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
