"""What a volume's front device shall be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FrontSpec:
    """The front that a live volume shall have: `size_bytes` over `disk`."""

    volume_id: str
    disk: str
    size_bytes: int
