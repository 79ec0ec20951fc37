"""What takes the place of `Images` on a host without object storage: everything is refused."""
# ruff: noqa: ARG002 - what is refused is not looked at

from __future__ import annotations

from collections.abc import Sequence

from blockd.domain.allocation import Allocation
from blockd.domain.errors import ObjectStoreError
from blockd.domain.transfer import Exported, ExportNotes, ExportOrder, ImageFacts, Progress, Upload
from blockd.domain.volume import OpenDisk


class NoImages:
    """Implements `service.ports.Images`; jobs of an earlier configuration fail with the reason."""

    async def check_bucket(self, bucket: str) -> None:
        raise _refusal()

    async def look(self, bucket: str, key: str) -> ImageFacts:
        raise _refusal()

    async def export(
        self,
        order: ExportOrder,
        source: OpenDisk,
        allocation: Allocation | None,
        notes: ExportNotes,
        progress: Progress,
    ) -> Exported:
        raise _refusal()

    async def abort(self, bucket: str, key: str, upload_id: str) -> None:
        raise _refusal()

    async def abort_since(self, bucket: str, key: str, before: Sequence[str], since: str) -> None:
        raise _refusal()

    async def uploads(self, bucket: str) -> Sequence[Upload]:
        raise _refusal()

    async def exported(self, order: ExportOrder) -> int | None:
        raise _refusal()

    async def restore(self, image: ImageFacts, target: OpenDisk, progress: Progress) -> str:
        raise _refusal()

    async def verify(self, image: ImageFacts, progress: Progress) -> str:
        raise _refusal()


def _refusal() -> ObjectStoreError:
    return ObjectStoreError(
        "this host has no object storage: set up [object_storage] in its blockd.toml"
    )
