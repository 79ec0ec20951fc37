"""A volume group with a thin pool and any number of thin snapshots, made of text alone.

LVM makes no thin pool without device-mapper, but restores one (`vgcfgrestore --force`): metadata
commands then cost what they cost in a real volume group of that size.

Source: vgcfgbackup(8) of a volume group that blockd made, LVM 2.03.16.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from blockd.domain.intent import disk_name, new_id
from tests.bench.bare import BareLvm

POOL = "pool"
ORIGIN = "origin"
_EXTENTS = 16
_VISIBLE = '"READ", "WRITE", "VISIBLE"'
_HIDDEN = '"READ", "WRITE"'


class NoLoopDevice(Exception):
    """There is none to be had; the message says why, in one line."""


@contextmanager
def loop_device(folder: Path, size_bytes: int) -> Iterator[str]:
    """A loop device over a sparse file in `folder`, for the length of the block.

    Raises:
        NoLoopDevice: not root, no loop driver, or none free.
    """
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.truncate(size_bytes)
    try:
        made = subprocess.run(
            ["/sbin/losetup", "--find", "--show", image], capture_output=True, check=False
        )
    except OSError as err:
        raise NoLoopDevice(str(err)) from err
    if made.returncode != 0:
        raise NoLoopDevice(made.stderr.decode(errors="replace").strip())
    device = made.stdout.decode().strip()
    try:
        yield device
    finally:
        subprocess.run(["/sbin/losetup", "--detach", device], check=False)


def restore(lvm: BareLvm, vg: str, empty: str, snapshots: int, tag: str, file: Path) -> list[str]:
    """Give `vg` a pool, one thin volume and `snapshots` thin snapshots, and nothing else.

    Args:
        empty: the text of `vgcfgbackup` while the volume group was empty.
        tag: of each snapshot.
        file: where the text is put.

    Returns:
        The snapshots' names, like blockd's.
    """
    names = [disk_name(new_id()) for _ in range(snapshots)]
    pool = f'''metadata = "{POOL}_tmeta"
        pool = "{POOL}_tdata"
        transaction_id = {snapshots + 1}
        chunk_size = 128
        discards = "passdown"
        zero_new_blocks = 1'''
    volumes = [
        _lv(POOL, "thin-pool", pool),
        _lv(ORIGIN, "thin", _thin(0, 1)),
        _lv("lvol0_pmspare", "striped", _stripe(0), status=_HIDDEN),
        _lv(f"{POOL}_tmeta", "striped", _stripe(_EXTENTS), status=_HIDDEN),
        _lv(f"{POOL}_tdata", "striped", _stripe(2 * _EXTENTS), status=_HIDDEN),
        *(
            _lv(
                name,
                "thin",
                f'{_thin(number, number + 1)}\n        origin = "{ORIGIN}"',
                status='"READ", "VISIBLE"',
                flags='"ACTIVATION_SKIP"',
                tags=f'"{tag}"',
            )
            for number, name in enumerate(names, 1)
        ),
    ]
    body = empty.rstrip().removesuffix("}")
    text = "\n".join([body, "  logical_volumes {", *volumes, "  }", "}", ""])
    file.write_text(text, "utf-8")
    lvm.run("vgcfgrestore", "--force", "--file", str(file), vg)
    return names


def _lv(
    name: str, kind: str, segment: str, *, status: str = _VISIBLE, flags: str = "", tags: str = ""
) -> str:
    lv_id = re.sub(
        r"(.{6})(.{4})(.{4})(.{4})(.{4})(.{4})(.{6})", r"\1-\2-\3-\4-\5-\6-\7", uuid4().hex
    )
    return f'''    {name} {{
      id = "{lv_id}"
      status = [{status}]
      flags = [{flags}]
      tags = [{tags}]
      creation_time = 1700000000
      creation_host = "bench"
      segment_count = 1
      segment1 {{
        start_extent = 0
        extent_count = {_EXTENTS}
        type = "{kind}"
        {segment}
      }}
    }}'''


def _thin(transaction_id: int, device_id: int) -> str:
    return f'''thin_pool = "{POOL}"
        transaction_id = {transaction_id}
        device_id = {device_id}'''


def _stripe(start_extent: int) -> str:
    return f"""stripe_count = 1
        stripes = [ "pv0", {start_extent} ]"""
