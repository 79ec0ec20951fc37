"""One import: an object becomes a disk, or only its digest is looked for.

A plain image (`qcow2_extents.py`) is copied by ourselves, from large GETs straight to the disk. All
others go through qemu-img, in its jail. Which way it goes is known before the first byte is
written.
"""

from __future__ import annotations

from typing import Protocol

import structlog

from blockd.domain.allocation import CLUSTER_BYTES
from blockd.domain.transfer import ImageFacts, Progress
from blockd.domain.volume import OpenDisk
from blockd.transfer.digest import ContentDigest, ScatteredDigest
from blockd.transfer.digest_sink import DigestSink
from blockd.transfer.disk_sink import disk_sink
from blockd.transfer.extent_copy import PieceSink, copy_extents
from blockd.transfer.nbd import Export
from blockd.transfer.object_reader import ObjectReader
from blockd.transfer.qcow2_extents import Extents, NotPlain, read_extents
from blockd.transfer.qcow2_header import HEAD_BYTES, ImageHeader, check_header
from blockd.transfer.qemu_img import Nbd, QemuImg, cpu_s
from blockd.transfer.s3 import ObjectStore
from blockd.transfer.served import served

log = structlog.get_logger()


class _Sink(Export, PieceSink, Protocol):
    """Both ways lead into it."""

    async def finish(self) -> str:
        """The content digest, after a good end."""


class ImageImport:
    """Of one image."""

    def __init__(
        self,
        store: ObjectStore,
        qemu_img: QemuImg,
        image: ImageFacts,
        progress: Progress,
        *,
        at_once: int,
    ) -> None:
        """`at_once`: so many GETs are under way."""
        self._store, self._qemu_img, self._image = store, qemu_img, image
        self._progress, self._at_once = progress, at_once
        progress.total_bytes = image.object_bytes

    async def restore(self, target: OpenDisk) -> str:
        """Write it to an empty disk; the content digest of what the disk holds then.

        Raises:
            ObjectStoreError: the object changed, or cannot be had.
            StorageError: the disk, or the image, is not as it should be.
        """
        size_bytes = self._image.virtual_size_bytes
        async with self._reader() as reader:
            header, extents = await self._plan(reader)
            async with disk_sink(target, size_bytes, _digest(extents)) as sink:
                return await self._into(sink, reader, header, extents)

    async def verify(self) -> str:
        """Its content digest. Raises as `restore`."""
        async with self._reader() as reader:
            header, extents = await self._plan(reader)
            sink = DigestSink(self._image.virtual_size_bytes, _digest(extents))
            return await self._into(sink, reader, header, extents)

    def _reader(self) -> ObjectReader:
        ahead, on_bytes = self._at_once, self._came
        return ObjectReader(self._store, self._image, ahead_blocks=ahead, on_bytes=on_bytes)

    def _came(self, count_bytes: int) -> None:
        """So many bytes; qemu-img reads some more than once, and those are not progress."""
        left_bytes = self._image.object_bytes - self._progress.done_bytes
        self._progress.add(min(count_bytes, left_bytes))

    async def _plan(self, reader: ObjectReader) -> tuple[ImageHeader, Extents | None]:
        """Its header; where its data lie, None if that is for qemu-img.

        The header is checked once more: all that is read from here on is pinned to the same ETag.
        """
        object_bytes = self._image.object_bytes
        head = await reader.table(0, min(HEAD_BYTES, object_bytes))
        header = check_header(bytes(head), object_bytes)
        try:
            extents = await read_extents(header, object_bytes, reader.table, ahead=self._at_once)
        except NotPlain as err:
            log.info("the image goes through qemu-img", reason=str(err))
            return header, None
        return header, extents

    async def _into(
        self, sink: _Sink, reader: ObjectReader, header: ImageHeader, extents: Extents | None
    ) -> str:
        if extents is not None:
            object_bytes = self._image.object_bytes
            # One more while answers are waited for; near, it would but be in the server's way.
            at_once = self._at_once + reader.is_far
            await copy_extents(extents, object_bytes, reader.fill, sink, at_once=at_once)
        else:
            await self._convert(sink, reader, header)
        digest = await sink.finish()
        self._came(self._image.object_bytes)  # what is left, which nobody had to read
        return digest

    async def _convert(self, sink: _Sink, reader: ObjectReader, header: ImageHeader) -> None:
        async with served(reader) as reads, served(sink) as writes:
            # L2 tables in as large pieces as there are: each is a question over a socket.
            l2_entry_bytes = min(header.cluster_bytes, CLUSTER_BYTES)
            await self._qemu_img.convert(
                Nbd(reads, "qcow2", l2_entry_bytes),
                Nbd(writes, "raw"),
                cpu_s=cpu_s(self._image.object_bytes) * 4,
            )


def _digest(extents: Extents | None) -> ContentDigest:
    """One that takes clusters in the order in which they will come."""
    if extents is None or extents.is_ascending:
        return ContentDigest()
    return ScatteredDigest(
        (one.disk_offset // CLUSTER_BYTES, -(-one.length // CLUSTER_BYTES))
        for one in extents.in_disk_order()
    )
