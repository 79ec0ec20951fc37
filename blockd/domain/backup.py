"""Backups of what LVM and dm-thin know of a class's disks: not of the disks' bytes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: What a part is: the text of the volume group, as `vgcfgrestore` reads it; the mappings of the
#: thin pool, as `thin_restore` does. What their files end in.
VG_TEXT: Final = "vg"
THIN_METADATA: Final = "thin.xml.gz"


@dataclass(frozen=True, slots=True)
class MetadataPart:
    """One part on its way into a backup; `content` is read once, to its end, and closed.

    `kind` is `VG_TEXT` or `THIN_METADATA`, whose content is XML and is packed by whoever keeps it.
    """

    kind: str
    content: AsyncGenerator[bytes, None]


@dataclass(frozen=True, slots=True)
class BackupFile:
    """A part that is kept."""

    kind: str
    path: Path
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Backup:
    """The parts of one class that were taken together.

    Attributes:
        number: rises with every backup of the class, whatever the clock says.
        taken_at: what the clock said.
    """

    storage_class: str
    number: int
    taken_at: str
    files: tuple[BackupFile, ...]

    @property
    def kinds(self) -> frozenset[str]:
        """Which parts there are; some may be missing where taking them failed."""
        return frozenset(file.kind for file in self.files)


async def whole(content: bytes) -> AsyncGenerator[bytes, None]:
    """The content of a part that is at hand, in one piece."""
    yield content
