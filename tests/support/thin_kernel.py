"""The thin pool of a test's daemon, seen and changed past LVM, as a crash would."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.support.daemon import VG, Place

POOL = f"{VG}-pool-tpool"


def dmsetup(*argv: str) -> str:
    """What it printed."""
    done = subprocess.run(["/sbin/dmsetup", *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (argv, done.stderr)
    return done.stdout.strip()


def tell_pool(message: str) -> None:
    """Send the pool a message."""
    dmsetup("message", POOL, "0", message)


def transaction_id() -> int:
    """The kernel's."""
    return int(dmsetup("status", POOL).split()[3])


def thin_ids() -> set[int]:
    """Every thin device that the kernel has, whether LVM knows it or not."""
    tell_pool("reserve_metadata_snap")
    try:
        done = subprocess.run(
            ["/usr/sbin/thin_ls", "--metadata-snap", "--no-headers", "--format", "DEV",
             f"/dev/mapper/{VG}-pool_tmeta"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    finally:
        tell_pool("release_metadata_snap")
    return {int(word) for word in done.stdout.split()}


def lvm_ids(place: Place) -> dict[str, int]:
    """The thin LVs that LVM knows, and their numbers."""
    report = place.lvm("lvs", "--noheadings", "-o", "lv_name,thin_id", VG)
    rows = [line.split() for line in report.splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) == 2}


def cut_short(place: Place, lv: str) -> None:
    """Make the last creation look as after a power cut between its last two steps.

    The kernel has the thin device, its transaction id is still the one before, and LVM's text holds
    the message that it owes.
    """
    before = transaction_id() - 1
    tell_pool(f"set_transaction_id {before + 1} {before}")
    _leave_message(place, f'create = "{lv}"')


def leave_heard_message(place: Place) -> None:
    """Make LVM's text look as after a power cut between the last two steps of a removal.

    The kernel has removed the device, and its transaction id says so; the message that told it is
    still in the text. Number 16000000 was never given to any device.
    """
    _leave_message(place, "delete = 16000000")


def _leave_message(place: Place, message: str) -> None:
    path = Path(f"{place.run}/vg.text")
    place.lvm("vgcfgbackup", "--file", str(path), VG)
    text, count = re.subn(
        r"^(\s*)zero_new_blocks = 1$",
        rf"\g<0>\n\1message1 {{\n\1\t{message}\n\1}}",
        path.read_text("utf-8"),
        flags=re.MULTILINE,
    )
    assert count == 1, text
    path.write_text(text, "utf-8")
    place.lvm("vgcfgrestore", "--yes", "--force", "--file", str(path), VG)
