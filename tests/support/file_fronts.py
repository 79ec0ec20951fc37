"""Links as fronts: `/dev/blockd` of the class made of sparse files."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from blockd.domain.errors import InUse, StorageError
from blockd.domain.volume import Device
from blockd.service.ports import FrontSpec
from tests.support.file_disks import FileDisks


class FileFronts(FileDisks):
    """The part of `FileDriver` that is about what users open: `dev/VOLUME`, a link to a disk."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._fronts = root / "dev"
        self._fronts.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    async def _enter(self, method: str) -> None:
        """Where tests hold an operation or make it fail."""

    async def connect(self, front: FrontSpec) -> None:
        """See `StorageDriver`."""
        await self._enter("connect")
        tag = self._need(front.disk)
        behind = await self.disk_behind(front.volume_id)
        if behind not in (None, front.disk):
            raise StorageError(f"the front of {front.volume_id} is over {behind}")
        if behind is None:
            self._show(front.disk, replace(tag, shown_bytes=front.size_bytes))
            self._link(front)
        elif front.size_bytes > tag.shown_bytes:
            self._show(front.disk, replace(tag, shown_bytes=front.size_bytes))

    async def disconnect(self, volume_id: str) -> None:
        """See `StorageDriver`."""
        await self._enter("disconnect")
        disk = await self.disk_behind(volume_id)
        if disk is None:
            return
        with self._unopened(volume_id, "delete"):
            self._front_path(volume_id).unlink()
        self._hide(disk)

    async def hide(self, snapshot_id: str) -> None:
        """See `StorageDriver`: there is nothing to be put away."""
        await self._enter("hide")
        disk = await self.disk_behind(snapshot_id)
        if disk is not None:
            with self._unopened(snapshot_id, "delete"):
                self._front_path(snapshot_id).unlink()
            self._hide(disk)

    async def swap(self, front: FrontSpec) -> None:
        """See `StorageDriver`."""
        await self._enter("swap")
        tag = self._need(front.disk)
        former = await self.disk_behind(front.volume_id)
        if former == front.disk:
            return
        with self._unopened(front.volume_id, "revert"):
            self._show(front.disk, replace(tag, shown_bytes=front.size_bytes))
            self._link(front)
        if former is not None:
            self._hide(former)

    async def disk_behind(self, volume_id: str) -> str | None:
        """See `StorageDriver`."""
        try:
            return self._front_path(volume_id).readlink().name
        except FileNotFoundError:
            return None

    def is_open(self, volume_id: str) -> bool:
        """See `StorageDriver`."""
        try:
            with self._unopened(volume_id, "look at"):
                return False
        except InUse:
            return True

    def device(self, front: FrontSpec) -> Device:
        """See `StorageDriver`."""
        return Device(str(self._front_path(front.volume_id)), front.size_bytes)

    def _front_path(self, volume_id: str) -> Path:
        return self._fronts / volume_id

    def _is_behind_front(self, disk: str) -> bool:
        return any(path.readlink().name == disk for path in self._fronts.iterdir())

    def _link(self, front: FrontSpec) -> None:
        """Point the front's path at a disk, at once for whoever opens it."""
        fresh = self._root / f"{front.volume_id}.new"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(self._disk_path(front.disk))
        fresh.replace(self._front_path(front.volume_id))

    @contextmanager
    def _unopened(self, volume_id: str, verb: str) -> Iterator[None]:
        """Hold the front closed to all others; `InUse` if somebody has it open.

        A write lease (fcntl(2), F_SETLEASE) is given only to the sole opener of a file, and later
        ones wait until it is gone: the kernel decides, whichever process has the file open.
        """
        try:
            descriptor = os.open(self._front_path(volume_id), os.O_RDONLY)
        except FileNotFoundError:
            yield
            return
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)  # SIGIO, the default, kills
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            os.close(descriptor)
            if error.errno != errno.EAGAIN:
                raise
            is_volume = self._front_path(volume_id).stat().st_mode & 0o200
            raise InUse(volume_id, verb, "volume" if is_volume else "snapshot") from None
        try:
            yield
        finally:
            os.close(descriptor)
