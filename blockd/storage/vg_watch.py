"""The disks of a volume group: whether they answer, and whether others changed the group.

No process, and next to no reading: one sector of each disk from the kernel's cache before and after
each turn, and the first pages from the disk after kernel events and twice a minute. Each look has a
deadline; a disk that hangs is not asked again before it has answered.
"""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import structlog

from blockd.host.command import EXHAUSTED
from blockd.storage.lvm_devices import candidate_devices
from blockd.storage.pv_header import PvHeader, read_pv_header, read_state

T = TypeVar("T")

#: What is on a disk (None: no physical volume), or why that cannot be told.
Seen: TypeAlias = PvHeader | str | None

#: For want of a descriptor, say: the disk is not to blame.
_NOT_LOOKED = ""

log = structlog.get_logger()

_DEADLINE_S = 2.0
_SLOW_POLL_S = 30.0
#: While a disk is in trouble: a disk that answers again may do so without an event.
_TROUBLED_POLL_S = 5.0
#: Events come in bursts, and the last of a burst counts, too.
_PAUSE_S = 0.2


@dataclass(slots=True)
class _Disk:
    """One physical volume.

    Attributes:
        state: of the group's metadata on it, when we last looked; empty: not known.
        state_at: where it is told.
        trouble: why it cannot be read.
    """

    path: str
    state: bytes
    state_at: int
    trouble: str = ""


class VgWatch:
    """Knows the disks by the uuids that LVM gave them: their names may change."""

    def __init__(self, vg: str, devices: Sequence[str], amiss: Callable[[], None]) -> None:
        """`amiss` is called when others changed the group, or a disk came or went.

        Args:
            devices: where disks of the group can be; empty: all of the host's.
        """
        self._vg, self._devices, self._amiss = vg, tuple(devices), amiss
        self._vg_uuid = ""
        self._disks: dict[str, _Disk] = {}
        self._asked: dict[str, asyncio.Future[Seen]] = {}
        self._wake = asyncio.Event()
        self._turns = self._turns_begun = 0

    def problems(self) -> list[str]:
        """A line for each disk that does not answer."""
        return [
            f"disk {disk.path} of volume group {self._vg} {disk.trouble}"
            for disk in self._disks.values()
            if disk.trouble
        ]

    def look_soon(self) -> None:
        """Something happened to some block device, or may have; every look is a full one."""
        self._wake.set()

    async def open(self, vg_uuid: str) -> None:
        """Find the disks of the group."""
        self._vg_uuid = vg_uuid
        await self._search()

    async def run(self) -> None:
        """Look when something happened, and now and then, until cancelled."""
        while True:
            try:
                troubled = any(disk.trouble for disk in self._disks.values())
                async with asyncio.timeout(_TROUBLED_POLL_S if troubled else _SLOW_POLL_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                await self._look()
            except Exception:
                log.exception("looking at the disks failed", vg=self._vg)
            await asyncio.sleep(_PAUSE_S)

    async def before_turn(self) -> None:
        """Others may have changed the group since our last turn; from here on it is ourselves."""
        self._turns += 1
        self._turns_begun += 1
        if await self._note():
            self._tell_change()

    async def after_turn(self) -> None:
        """What the metadata are now is our own doing."""
        try:
            await self._note()
        finally:
            self._turns -= 1

    def after_late_turn(self) -> None:
        """As `after_turn`, when a command has only ended now: what it did is not known."""
        for disk in self._disks.values():
            disk.state = b""
        self._turns -= 1
        self.look_soon()

    async def _look(self) -> None:
        troubles = self.problems()
        if await self._refresh():
            self._tell_change()
        if any(disk.trouble for disk in self._disks.values()) or not self._disks:
            await self._search()
        if (now := self.problems()) != troubles:
            for line in now:
                if line not in troubles:
                    log.error("a disk does not answer", problem=line)
            self._amiss()

    def _tell_change(self) -> None:
        log.info("volume group was changed by others", vg=self._vg)
        self._amiss()

    async def _note(self) -> bool:
        """Read what state the group is in; whether it is another one than we knew."""
        has_changed = False
        for disk in self._disks.values():
            if not disk.trouble:
                state = await self._state(disk)
                has_changed = has_changed or state != disk.state
                disk.state = state
        return has_changed

    async def _state(self, disk: _Disk) -> bytes:
        """From the cache; empty when that cannot be had."""
        path = Path(disk.path)
        try:
            known = read_state(path, disk.state_at, wait=False)
            if known is None:
                reading = _in_thread(lambda: read_state(path, disk.state_at, wait=True))
                async with asyncio.timeout(_DEADLINE_S):
                    known = await reading
        except (OSError, TimeoutError):
            self.look_soon()
            known = None
        return known or b""

    async def _refresh(self) -> bool:
        """Read every known disk; one that belongs to another group now is forgotten.

        Returns:
            Whether others changed the group. What was read while a turn of ours began or ended is
            our own doing, and noted when the turn ends.
        """
        has_changed, turns_begun = False, self._turns_begun
        disks = list(self._disks.items())
        found = await asyncio.gather(*(self._read(disk.path) for _, disk in disks))
        for (uuid, disk), header in zip(disks, found, strict=True):
            if header == _NOT_LOOKED:
                continue
            if isinstance(header, str):
                disk.trouble = header
            elif header is None or header.pv_uuid != uuid:
                disk.trouble = "is gone: another disk has its name"
            elif header.vg_uuid not in (self._vg_uuid, ""):
                self._disks.pop(uuid, None)
            else:
                disk.trouble = ""
                if not self._turns and self._turns_begun == turns_begun:
                    has_changed = has_changed or header.state != disk.state
                    disk.state, disk.state_at = header.state, header.state_at
        return has_changed

    async def _search(self) -> None:
        """Look for disks of the group under all names."""
        paths = list(self._devices) or await asyncio.to_thread(candidate_devices)
        for path, header in zip(
            paths, await asyncio.gather(*(self._read(path) for path in paths)), strict=True
        ):
            if isinstance(header, PvHeader) and header.vg_uuid == self._vg_uuid:
                known = self._disks.get(header.pv_uuid)
                if known is None:
                    self._disks[header.pv_uuid] = _Disk(path, header.state, header.state_at)
                elif known.trouble:
                    known.path, known.trouble = path, ""

    async def _read(self, path: str) -> Seen:
        asked = self._asked.get(path)
        if asked is None:
            asked = self._asked[path] = _in_thread(lambda: _look_at(path))
            asked.add_done_callback(lambda _: self._asked.pop(path, None))
        try:
            async with asyncio.timeout(_DEADLINE_S):
                return await asyncio.shield(asked)
        except TimeoutError:
            return "does not answer"


def _look_at(path: str) -> Seen:
    try:
        return read_pv_header(Path(path))
    except OSError as err:
        if err.errno in EXHAUSTED:
            return _NOT_LOOKED
        gone = err.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV)
        return "is gone" if gone else f"cannot be read: {err.strerror}"


def _in_thread(look: Callable[[], T]) -> asyncio.Future[T | None]:
    """In a thread of its own that the daemon's end does not wait for: a disk may hang for ever.

    None after an OSError.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T | None] = loop.create_future()

    def settle(seen: T | None) -> None:
        if not answer.done():
            answer.set_result(seen)

    def work() -> None:
        seen = None
        with suppress(OSError):
            seen = look()
        with suppress(RuntimeError):  # the loop is closed: nobody waits for the answer
            loop.call_soon_threadsafe(settle, seen)

    threading.Thread(target=work, name="disk look", daemon=True).start()
    return answer
