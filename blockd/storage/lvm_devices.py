"""Which devices LVM may open at all.

Never a front, and never an LV: what is inside a volume belongs to a guest, and may look like a
physical volume (promise 6 of the specification; lvm.conf(5), scan_lvs).
"""

from __future__ import annotations

from pathlib import Path

_PRIVATE_DM_UUIDS = ("LVM-", "BLOCKD-")


def candidate_devices(sysfs: Path = Path("/sys")) -> list[str]:
    """Paths of all block devices that could be physical volumes of this host."""
    return sorted(
        f"/dev/{entry.name}"
        for entry in (sysfs / "class" / "block").iterdir()
        if _has_room(entry) and not _dm_uuid(entry).startswith(_PRIVATE_DM_UUIDS)
    )


def _has_room(entry: Path) -> bool:
    try:
        return int((entry / "size").read_text("ascii")) > 0
    except (OSError, ValueError):
        return False


def _dm_uuid(entry: Path) -> str:
    try:
        return (entry / "dm" / "uuid").read_text("ascii").strip()
    except OSError:
        return ""
