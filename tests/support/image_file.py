"""An image in a file, imported as if it were an object, either way."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from unittest import mock

from blockd.domain.transfer import ImageFacts, Progress
from blockd.domain.units import GIB
from blockd.domain.volume import OpenDisk
from blockd.transfer import image_import
from blockd.transfer.image_import import ImageImport
from blockd.transfer.qcow2_extents import Extents, NotPlain, read_extents
from blockd.transfer.qcow2_header import HEAD_BYTES, ImageHeader, check_header
from blockd.transfer.qemu_img import QemuImg
from blockd.transfer.s3 import ObjectStore


class FileStore:
    """What an import needs of a store. Asks for nothing beyond the object's end go unnoticed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.fetched: list[tuple[int, int]] = []  # begin, end

    async def read(self, bucket: str, key: str, etag: str, offset: int, into: memoryview) -> None:
        """See `ObjectStore`."""
        end = offset + len(into)
        assert 0 <= offset < end <= self._path.stat().st_size, "asked for what is not there"
        self.fetched.append((offset, end))
        with self._path.open("rb") as file:
            assert os.preadv(file.fileno(), [into], offset) == len(into)

    @property
    def fetched_bytes(self) -> int:
        """In all."""
        return sum(end - begin for begin, end in self.fetched)


@dataclass(frozen=True)
class Imported:
    """What came of an import: digests of the disk, and of the image when it was only verified.

    Attributes:
        progress: of both: each number of bytes done that was to be seen.
    """

    digest: str
    verified: str
    went_through_qemu_img: bool
    store: FileStore
    progress: tuple[list[int], list[int]]


def header_of(path: Path) -> ImageHeader:
    """Raises ImageRefused."""
    with path.open("rb") as file:
        return check_header(file.read(HEAD_BYTES), path.stat().st_size)


async def extents_of(path: Path) -> Extents:
    """Where its data lie; raises NotPlain."""
    store = FileStore(path)

    async def fetch(offset: int, length: int) -> bytearray:
        found = bytearray(length)
        await store.read("", "", "", offset, memoryview(found))
        return found

    return await read_extents(header_of(path), path.stat().st_size, fetch, ahead=4)


def disk_of(path: Path, extents: Extents) -> bytes:
    """The disk that is in an image."""
    image, disk = path.read_bytes(), bytearray(extents.size_bytes)
    for extent in extents.in_object_order():
        data = image[extent.object_offset : extent.object_end]
        disk[extent.disk_offset : extent.disk_offset + len(data)] = data
    return bytes(disk)


async def import_file(path: Path, target: Path, *, by_qemu_img: bool = False) -> Imported:
    """Import it to a fresh sparse file, and verify it, too.

    Args:
        by_qemu_img: even if it is plain.
    """
    size_bytes = header_of(path).virtual_size_bytes
    target.unlink(missing_ok=True)
    target.touch()
    os.truncate(target, size_bytes)
    image = ImageFacts("bucket", "key", "etag", path.stat().st_size, size_bytes, None)
    store, qemu_img = FileStore(path), _Watched(GIB)
    with mock.patch.object(image_import, "read_extents", _never_plain if by_qemu_img else read):
        restored, looked_at = _Seen(), _Seen()
        objects = cast("ObjectStore", store)
        importing = ImageImport(objects, qemu_img, image, restored, at_once=4)
        digest = await importing.restore(OpenDisk(str(target), size_bytes))
        verifying = ImageImport(objects, qemu_img, image, looked_at, at_once=4)
        verified = await verifying.verify()
    seen = (restored.seen, looked_at.seen)
    return Imported(digest, verified, qemu_img.runs > 0, store, seen)


read = read_extents


async def _never_plain(*_: object, ahead: int) -> Extents:
    raise NotPlain("a test says so")


class _Seen(Progress):
    """Keeps what was to be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def add(self, count_bytes: int) -> None:
        """See `Progress`."""
        super().add(count_bytes)
        self.seen.append(self.done_bytes)


class _Watched(QemuImg):
    """Counts."""

    runs = 0

    async def convert(self, *args: object, **options: object) -> None:
        """See `QemuImg`."""
        self.runs += 1
        await super().convert(*args, **options)  # type: ignore[arg-type]


def word(image: bytes, offset: int) -> int:
    """A table's entry."""
    return int(struct.unpack_from(">Q", image, offset)[0])
