"""Carries out operations of a world through the API, and reads back what there is."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockd.storage.dm import DeviceInfo, DeviceMapper, lv_device_name
from tests.faults.world import KEPT, Found, Item, Op, group_members
from tests.faults.writer_amid import WriterAmid
from tests.support import stamps
from tests.support.client import Api
from tests.support.daemon import Place
from tests.support.stamps import BLOCK_BYTES

_SETTLE_S = 60.0
_READER_UUID = "FAULTS-reader"


def carry_out(api: Api, op: Op, storage_class: str) -> None:
    """Send the request, or write and flush; comes back when it was answered.

    What was answered must come true. It may take a while yet: see `settle`.

    Raises:
        ApiError: it was refused.
        OSError, http.client.HTTPException: the daemon is gone.
    """
    body: dict[str, Any]
    match op.verb:
        case "create":
            size = {"size": op.blocks * BLOCK_BYTES}
            body = {"name": op.name, "from_empty": size, "class": storage_class}
            api.block("POST", "volumes", body)
        case "write":
            device = api.device(id_of(api, "volumes", op.name))
            stamps.stamp(device, op.generation, op.start * BLOCK_BYTES, op.end * BLOCK_BYTES)
        case "snapshot":
            volume_id = id_of(api, "volumes", op.source)
            api.block("POST", "snapshots", {"name": op.name, "volume_id": volume_id})
        case "group":
            ids = [id_of(api, "volumes", volume) for _, volume in group_members(op)]
            body = {"name": op.name, "volume_ids": ids}
            with WriterAmid(op, [api.device(volume_id) for volume_id in ids]):
                api.host("POST", "groups/snapshots", body)
        case "clone":
            snapshot_id = id_of(api, "snapshots", op.source)
            source = {"snapshot_id": snapshot_id, "size": op.blocks * BLOCK_BYTES}
            api.block("POST", "volumes", {"name": op.name, "from_snapshot": source})
        case "grow":
            volume_id = id_of(api, "volumes", op.name)
            api.block("PATCH", f"volumes/{volume_id}", {"size": op.blocks * BLOCK_BYTES})
        case "revert" | "revert for good":
            volume_id = id_of(api, "volumes", op.name)
            snapshot_id = id_of(api, "snapshots", op.source)
            body = {"snapshot_id": snapshot_id, "keep_previous": op.verb == "revert"}
            api.host("POST", f"volumes/{volume_id}/revert", body)
        case "delete volume" | "delete snapshot":
            kind = f"{op.verb.split()[1]}s"
            api.block("DELETE", f"{kind}/{id_of(api, kind, op.name)}")
        case "undelete volume" | "undelete snapshot":
            kind = f"{op.verb.split()[1]}s"
            api.host("POST", f"{kind}/{id_of(api, kind, op.name)}/undelete")
        case "export":
            api.export(id_of(api, "snapshots", op.source), op.name)
        case "import":
            source = {"bucket": "backups", "key": op.source}
            body = {**source, "name": op.name, "class": storage_class}
            api.block("POST", "snapshots/import-from-object-storage", body)
        case _:
            raise ValueError(op.verb)


def id_of(api: Api, kind: str, name: str) -> str:
    """The id of what has this name, here."""
    items = api.all(kind, "&include_deleted=true")
    (found,) = [item["id"] for item in items if name_here(item["name"]) == name]
    return str(found)


def name_here(name: str) -> str:
    """As worlds have it: a snapshot that a revert kept is named without the time."""
    return re.sub(f"{KEPT} .*Z$", KEPT, name)


def settle(api: Api, *, keeps_trash: bool = False) -> None:
    """Wait until nothing is under way, and until the trash is erased where it is not kept."""
    deadline = time.monotonic() + _SETTLE_S
    while True:
        api.idle()
        if keeps_trash or not any(item["status"] == "deleted" for _, item in items_of(api)):
            api.idle()
            return
        if time.monotonic() > deadline:
            raise TimeoutError("the trash is not emptied")
        time.sleep(0.02)


def items_of(api: Api) -> Iterator[tuple[str, dict[str, Any]]]:
    for kind in ("volumes", "snapshots"):
        for item in api.all(kind, "&include_deleted=true"):
            yield kind, item


def look(api: Api, place: Place, mapper: DeviceMapper, thin_ids: dict[str, int]) -> Found:
    """Read everything; what is in the trash is brought back to be read. The daemon is idle.

    Args:
        thin_ids: of each LV of a thin class, as LVM says.

    Raises:
        AssertionError: a block is torn, or something is in no state that can be read.
    """
    found: dict[str, dict[str, Item]] = {"volumes": {}, "snapshots": {}}
    items = list(items_of(api))
    for kind, item in items:
        if item["status"] == "deleted":
            api.host("POST", f"{kind}/{item['id']}/undelete")
    api.idle()
    with closing(sqlite3.connect(f"file:{place.catalog}?mode=ro", uri=True)) as catalog:
        rows = catalog.execute("SELECT id, disk, storage_class FROM snapshots").fetchall()
    disks = {snapshot_id: (disk, place.classes[name][1]) for snapshot_id, disk, name in rows}
    for kind, item in items:
        assert item["status"] in ("available", "deleted"), item
        if kind == "volumes":
            blocks = _generations(api.device(item["id"]), item["size"])
        else:
            disk, vg = disks[item["id"]]
            lv = _Lv(vg, disk, thin_ids.get(disk), item["size"])
            with _snapshot_device(place, mapper, lv) as path:
                blocks = _generations(path, item["size"])
        name = name_here(item["name"])
        assert name not in found[kind], f"two {kind} are named {name}"
        found[kind][name] = Item(blocks, in_trash=item["status"] == "deleted")
    return Found(**found)


def _generations(path: Path, size_bytes: int) -> tuple[int, ...]:
    with stamps.opened(path) as device:
        return tuple(device.generations(0, size_bytes))


@dataclass(frozen=True)
class _Lv:
    vg: str
    name: str
    thin_id: int | None
    size_bytes: int


@contextmanager
def _snapshot_device(place: Place, mapper: DeviceMapper, lv: _Lv) -> Iterator[Path]:
    """Where a snapshot can be read.

    A thin one gets a device of ours, which costs no process; a thick one is active, if it is not
    one that was imported.
    """
    if lv.thin_id is None:
        name = lv_device_name(lv.vg, lv.name)
        is_active = mapper.info_of_name(name) is not None
        if not is_active:
            place.lvm("lvchange", "-ay", "-K", f"{lv.vg}/{lv.name}")
        yield _node(mapper.info_of_name(name))
        if not is_active:
            place.lvm("lvchange", "-an", f"{lv.vg}/{lv.name}")
        return
    pool = mapper.info_of_name(f"{lv.vg}-pool-tpool")
    assert pool is not None
    mapper.create("faults-reader", _READER_UUID)
    try:
        mapper.load(_READER_UUID, lv.size_bytes // 512, "thin", f"{pool.number} {lv.thin_id}")
        mapper.resume(_READER_UUID)
        yield _node(mapper.info(_READER_UUID))
    finally:
        mapper.remove(_READER_UUID)


def _node(info: DeviceInfo | None) -> Path:
    assert info is not None
    return Path(f"/dev/dm-{info.minor}")
