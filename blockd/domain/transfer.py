"""What moving an image between a snapshot and an object needs to know, and how far it is."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from blockd.domain.job import Compression

_WINDOW_S = 10.0
_SAMPLE_S = 0.2


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """An object that is an image we may import.

    Attributes:
        etag: what every later read is pinned to.
        virtual_size_bytes: of the disk in the image, in whole sectors.
        content_digest: what the object says of itself, if blockd wrote it.
    """

    bucket: str
    key: str
    etag: str
    object_bytes: int
    virtual_size_bytes: int
    content_digest: str | None


@dataclass(frozen=True, slots=True)
class Upload:
    """A multipart upload that was begun at `initiated_at` (UTC, ISO 8601) and not ended."""

    key: str
    upload_id: str
    initiated_at: str


@dataclass(frozen=True, slots=True)
class ExportOrder:
    """One export. `upload_id` and `part_bytes` are those of an attempt that may be resumed."""

    job_id: str
    snapshot_id: str
    bucket: str
    key: str
    size_bytes: int
    compression: Compression
    upload_id: str | None = None
    part_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Exported:
    """A complete object."""

    content_digest: str
    object_bytes: int


class ExportNotes(Protocol):
    """What an export writes into the journal as it goes; each is durable when it returns."""

    async def creating(self, uploads_before: Sequence[str]) -> None:
        """An upload is about to be created, besides those that the key has already."""

    async def uploading(self, upload_id: str, part_bytes: int) -> None:
        """It exists."""

    async def completing(self, content_digest: str) -> None:
        """All parts are there, and the object is about to become visible."""


class Progress:
    """Bytes so far, of how many, and how fast over the last ten seconds."""

    def __init__(self) -> None:
        self.done_bytes = 0
        self.total_bytes: int | None = None
        self._samples: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def add(self, count_bytes: int) -> None:
        """So many more are done."""
        self.done_bytes += count_bytes
        now = time.monotonic()
        if now - self._samples[-1][0] >= _SAMPLE_S:
            self._samples.append((now, self.done_bytes))
            while now - self._samples[0][0] > _WINDOW_S and len(self._samples) > 2:
                self._samples.popleft()

    def skip(self, count_bytes: int) -> None:
        """So many were done by an earlier attempt: they say nothing of the rate."""
        self.done_bytes += count_bytes
        self._samples = deque([(time.monotonic(), self.done_bytes)])

    @property
    def rate_bytes_s(self) -> float:
        """Over the last seconds; 0 while nothing moves."""
        began, had = self._samples[0]
        elapsed_s = time.monotonic() - began
        return (self.done_bytes - had) / elapsed_s if elapsed_s > 0 else 0.0

    @property
    def eta_s(self) -> float | None:
        """Until the end at this rate, None when there is no telling."""
        rate = self.rate_bytes_s
        if self.total_bytes is None or rate <= 0:
            return None
        return max(self.total_bytes - self.done_bytes, 0) / rate
