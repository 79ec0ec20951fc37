"""Files as disks: sparse ones, each beside a mark that says it is ours."""

from __future__ import annotations

import errno
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from blockd.domain.errors import StorageError
from tests.support.file_pool import whole_extents


@dataclass(frozen=True, slots=True)
class Tag:
    """What marks a file as ours.

    `size_bytes` is the disk's size in whole extents, `shown_bytes` what its file shall be long:
    the front's size while it has one. A regular file grows when somebody writes beyond its end;
    what is beyond `shown_bytes` is no part of the disk and is cut off before anything else.
    `source` is what it was copied from.
    """

    size_bytes: int
    shown_bytes: int
    source: str | None = None
    # of thick classes (thick_files.py):
    origin: str | None = None
    old_from: int | None = None
    merging: str | None = None
    lost: str | None = None


class FileDisks(ABC):
    """The part of `FileDriver` that is about bytes: `disks/NAME`, and `tags/NAME`, the mark."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._disks, self._tags = root / "disks", root / "tags"
        for directory in (self._disks, self._tags):
            directory.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def _is_behind_front(self, disk: str) -> bool:
        """Whether somebody may have it open."""

    def _disk_path(self, disk: str) -> Path:
        return self._disks / disk

    def _tag(self, disk: str) -> Tag | None:
        """The mark of a disk of ours, None for a foreign file or no file at all."""
        try:
            return Tag(**json.loads((self._tags / disk).read_text()))
        except FileNotFoundError:
            return None

    def _need(self, disk: str) -> Tag:
        tag = self._tag(disk)
        if tag is None or not self._disk_path(disk).exists():
            raise StorageError(f"there is no disk {disk}")
        return tag

    def _used_bytes(self) -> int:
        """What files share in a thin pool is counted for each here."""
        return sum(self._disk_path(disk).stat().st_blocks * 512 for disk in self._ours())

    def _ours(self) -> dict[str, Tag]:
        names = sorted(path.name for path in self._disks.iterdir())
        return {name: tag for name in names if (tag := self._tag(name)) is not None}

    def _make(self, disk: str, size_bytes: int) -> None:
        """A file of zeros; the tag comes first, so that a broken-off attempt is ours to remove."""
        if self._tag(disk) is not None:
            self._remove(disk)
        elif self._disk_path(disk).exists():
            raise StorageError(f"{disk} exists and is not ours")
        size_bytes = whole_extents(size_bytes)
        tag = Tag(size_bytes, size_bytes)
        self._mark(disk, tag)
        self._disk_path(disk).touch(mode=0o600)
        self._show(disk, tag)

    def _copy(self, disk: str, source: str, least_bytes: int) -> None:
        tag = self._need(source)
        self._show(source, tag)
        self._make(disk, max(tag.size_bytes, least_bytes))
        self._mark(disk, replace(self._need(disk), source=source))
        copy_range(self._disk_path(source), self._disk_path(disk), 0, None)

    def _remove(self, disk: str) -> None:
        if self._is_behind_front(disk):
            raise StorageError(f"{disk} is behind a front")
        self._disk_path(disk).unlink(missing_ok=True)
        (self._tags / disk).unlink()

    def _mark(self, disk: str, tag: Tag) -> None:
        (self._tags / disk).write_text(json.dumps(asdict(tag)))

    def _show(self, disk: str, tag: Tag) -> None:
        """Give the disk's file the length it shall have; what was written beyond is dropped."""
        if tag.shown_bytes > tag.size_bytes:
            raise StorageError(f"{disk} has {tag.size_bytes} bytes, not {tag.shown_bytes}")
        path = self._disk_path(disk)
        mode = path.stat().st_mode
        path.chmod(0o600)  # a snapshot's is read-only
        for length in (self._need(disk).shown_bytes, tag.shown_bytes):
            if path.stat().st_size != length:
                os.truncate(path, length)
        path.chmod(mode)
        self._mark(disk, tag)

    def _hide(self, disk: str) -> None:
        """A disk that has lost its front has its full length again."""
        tag = self._need(disk)
        self._show(disk, replace(tag, shown_bytes=tag.size_bytes))


def copy_range(source: Path, target: Path, begin: int, end: int | None) -> None:
    """Copy what is allocated; holes stay holes. The target is empty there, and long enough."""
    with source.open("rb") as reader, target.open("r+b") as writer:
        for offset, stop in data_ranges(reader.fileno()):
            at, until = max(offset, begin), stop if end is None else min(stop, end)
            while at < until:
                at += os.copy_file_range(reader.fileno(), writer.fileno(), until - at, at, at)


def data_ranges(descriptor: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of what is no hole, ascending."""
    size, hole = os.fstat(descriptor).st_size, 0
    while hole < size:
        try:
            offset = os.lseek(descriptor, hole, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        hole = os.lseek(descriptor, offset, os.SEEK_HOLE)
        yield offset, hole
