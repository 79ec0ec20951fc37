"""Replays crash points in the guest.

    python -m tests.faults.replay_guest FOLDER ENTRIES...

For each number of entries of the log: builds the disk as it was after them, starts the daemon on a
copy-on-write view of it, and compares what is there with what must be. Then storage must take a
volume, a snapshot and their erasure as if nothing had been. FOLDER holds `recording.json`; a line
of JSON for each point is added to its `points.jsonl`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blockd.domain.effects import SideEffects
from blockd.storage.dm import DeviceMapper, open_device_mapper
from tests.faults.crash_disk import (
    CHANGES,
    LOG,
    REBUILT,
    RUN,
    fresh_run,
    mount_state,
    place_on,
    slices,
    unmount_state,
)
from tests.faults.crash_points import Point, Recording, all_points, worlds
from tests.faults.notes import Notes
from tests.faults.ops import carry_out, look, settle
from tests.faults.world import Op, World
from tests.faults.write_log import WriteLog, open_log
from tests.support import thin_kernel
from tests.support.agreement import expect_agreement
from tests.support.client import Api
from tests.support.daemon import Place
from tests.support.inner_daemon import inner_daemon
from tests.support.object_store import Server, object_store

#: A point takes some seconds; one that takes this long hangs, and the guest with it perhaps.
POINT_S = 150.0
_VIEW, _UUID = "faults-view", "FAULTS-"
_CHANGES_SECTORS = 256 * 2048  # of /dev/ubdd


class Replay:
    """One recording, and the disk as it is rebuilt from it, ever further."""

    def __init__(
        self, recording: Recording, log: WriteLog, mapper: DeviceMapper, server: Server
    ) -> None:
        self._recording, self._log, self._mapper, self._server = recording, log, mapper, server
        self._worlds = worlds(recording.ops)
        self._rebuilt = os.open(REBUILT, os.O_RDWR | os.O_DIRECT)
        self._entries = 0

    async def look_at(self, point: Point) -> None:
        """Raises what is wrong with this point."""
        self._log.write_out(self._entries, point.entries, self._rebuilt)
        self._entries = point.entries
        allowed = self._allowed(point)
        place = place_on(self._recording.kind, self._server, keeps_trash=allowed[0].keeps_trash)
        with self._view(), _mounted():
            async with inner_daemon(place) as api:
                await asyncio.to_thread(self._compare, point, allowed, place, api)

    def _allowed(self, point: Point) -> list[World]:
        after = self._worlds[point.op + 1]
        return [after] if point.is_answered else [self._worlds[point.op], after]

    def _compare(self, point: Point, allowed: list[World], place: Place, api: Api) -> None:
        keeps_trash = allowed[0].keeps_trash
        settle(api, keeps_trash=keeps_trash)
        lvs = expect_agreement(place)
        self._expect_jobs(api, allowed)
        thin_ids = {name: int(lv["thin_id"]) for name, lv in lvs.items() if lv["thin_id"]}
        op = self._recording.ops[point.op] if point.op >= 0 else Op("none")
        written = op.name if op.verb == "write" else ""
        found = look(api, place, self._mapper, thin_ids)
        difference = found.difference(allowed, written)
        assert difference is None, difference
        if point.entries % 4 == 2 and place.storage_class == "sbs" and not keeps_trash:
            self._let_go_first(api, place, [*found.snapshots])
        self._probe(api, place, with_snapshot=point.entries % 4 == 0)
        settle(api, keeps_trash=keeps_trash)
        expect_agreement(place)
        assert self._server.uploads() == [], "an upload is left over"

    def _let_go_first(self, api: Api, place: Place, snapshots: list[str]) -> None:
        """A removal before anything is made leaves no device: LVM may lose one (decision 12)."""
        for name in snapshots[:1]:
            carry_out(api, Op("delete snapshot", name), place.storage_class)
            settle(api, keeps_trash=False)
            known = thin_kernel.lvm_ids(place)
            assert thin_kernel.thin_ids() == set(known.values()), (name, known)

    def _probe(self, api: Api, place: Place, *, with_snapshot: bool) -> None:
        """Storage takes something new, and lets go of it.

        An LVM command takes a third of a second: a snapshot is tried at every fourth point.
        """
        made = [Op("snapshot", "probe", source="probe")] if with_snapshot else []
        gone = [Op("delete snapshot", "probe")] if with_snapshot else []
        for probe in (Op("create", "probe", blocks=1025), *made):
            carry_out(api, probe, place.storage_class)
            api.idle()
        carry_out(api, Op("write", "probe", generation=99, end=16), place.storage_class)
        for probe in (*gone, Op("delete volume", "probe")):
            carry_out(api, probe, place.storage_class)

    def _expect_jobs(self, api: Api, allowed: list[World]) -> None:
        """What was begun has succeeded, and each object that must be there is as it was."""
        jobs = api.host("GET", "jobs?page_size=100")["jobs"]
        ends = [(job["kind"], job["state"], job["error"]) for job in jobs]
        assert all(end[1:] == ("succeeded", None) for end in ends), ends
        digests = {job["key"]: job["content_digest"] for job in jobs if job["kind"] == "export"}
        for key in set.intersection(*(set(world.objects) for world in allowed)):
            assert digests[key] == self._recording.digests[key]

    @contextmanager
    def _view(self) -> Iterator[None]:
        """The slices over a view of the rebuilt disk that forgets what is written to it."""
        changes = f"{REBUILT} {CHANGES} N 16"
        sectors = sum(length for _, _, length in slices())
        view = self._make(_VIEW, sectors, "snapshot", changes)
        try:
            for path, start, length in slices():
                device = self._make(path.name, length, "linear", f"{view} {start}")
                path.unlink(missing_ok=True)
                path.symlink_to(f"../dm-{device.partition(':')[2]}")
            yield
        finally:
            self._remove_all()

    def _make(self, name: str, sectors: int, kind: str, params: str) -> str:
        uuid = _UUID + name
        self._mapper.create(name, uuid)
        self._mapper.load(uuid, sectors, kind, params)
        self._mapper.resume(uuid)
        info = self._mapper.info(uuid)
        assert info is not None
        return info.number

    def _remove_all(self) -> None:
        """Every device, those on top first; what is held open is somebody's leak."""
        left = self._mapper.devices("")
        while left:
            free = [device for device in left if device.open_count == 0]
            assert free, f"devices are held open: {[device.name for device in left]}"
            for device in free:
                self._mapper.remove(device.uuid)
            left = self._mapper.devices("")
        for node in Path("/dev/mapper").iterdir():
            if node.name != "control":
                node.unlink()


@contextmanager
def _mounted() -> Iterator[None]:
    fresh_run()
    mount_state()
    try:
        yield
    finally:
        unmount_state()


@contextmanager
def _copied(objects: Path) -> Iterator[Server]:
    """A server over a copy of the objects: other guests may replay the same recording."""
    root = Path("/tmp/store")
    shutil.copytree(objects, root / objects.name)
    with object_store(root) as server:
        yield server


async def main(folder: Path, wanted: set[int]) -> None:
    """Points are tried on after one that fails; one that hangs ends the guest."""
    recording = Recording.load(folder / "recording.json")
    with (
        open_log(LOG) as log,
        open_device_mapper(SideEffects()) as mapper,
        _copied(folder / "objects") as server,
    ):
        results = Notes(folder / "points.jsonl")
        replay = Replay(recording, log, mapper, server)
        for point in all_points(log.entries):
            if point.entries not in wanted:
                continue
            began, failure = time.monotonic(), ""
            try:
                async with asyncio.timeout(POINT_S):
                    await replay.look_at(point)
            except Exception:
                failure = f"{traceback.format_exc()}\n{_end_of_log()}"
            took_s = time.monotonic() - began
            op = str(recording.ops[point.op]) if point.op >= 0 else "the start"
            results.add(entries=point.entries, op=op, took_s=round(took_s, 2), failure=failure)
            print(point.entries, op, f"{took_s:.1f} s:", failure or "good", flush=True)
            if took_s >= POINT_S:
                os._exit(3)  # a thread waits for ever


def _end_of_log() -> str:
    log = RUN / "blockd.log"
    return log.read_text("utf-8")[-4000:] if log.exists() else ""


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), {int(number) for number in sys.argv[2:]}))
