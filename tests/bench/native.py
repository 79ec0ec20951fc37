"""Part `native`: the control plane at full speed, on a host with loop devices, as root.

LVM runs with `activation = 0`, so it needs no device-mapper and touches no device but ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from blockd.storage.lvm_config import write_lvm_config
from tests.bench.bare import DEBIAN_CONF, BareLvm, debian_lvm
from tests.bench.client import POLL_S, Connection
from tests.bench.crafted_vg import NoLoopDevice, loop_device, restore
from tests.bench.guest import progress
from tests.bench.native_daemon import LINEAR, TAG, VOLUME_ID, Place
from tests.bench.report import Section, median_ms, table
from tests.bench.rounds import (
    BLOCKD,
    DEBIAN,
    ERASE,
    MAKE,
    OURS,
    Rounds,
    Samples,
    bare_contenders,
    comparison,
)

_NO_ACTIVATION = "global { activation = 0 }"
_NO_UDEV = "activation { udev_sync = 0\n udev_rules = 0 }"
_DISK_BYTES = 8 * 1024**3
_READY_S = 60


def section(*, quick: bool) -> Section:
    """Make the volume groups, run the rounds, tabulate; or say in a line why it cannot be."""
    try:
        found = _measure([10, 100], 1, 4) if quick else _measure([10, 100, 300, 1000], 3, 7)
    except NoLoopDevice as err:
        progress(f"native: skipped: {err}")
        return Section("native", f"Skipped: {err}")
    return Section("native", f"{_METHOD}\n\n{comparison(found)}\n\n{_slopes(found)}")


_METHOD = (
    "Milliseconds, median (first to third quartile), on the host itself, with LVM's"
    " `activation = 0`: a volume group on a loop device, whose thin pool and thin snapshots were"
    " loaded with `vgcfgrestore`. The daemon is whole (HTTP, service, catalog on the same file"
    " system, driver, LVM processes) but for device-mapper, which is a stand-in without fronts."
    " LVM makes no thin LV without a kernel to make it in, so all three make a linear one of one"
    " extent with the same flags: the same metadata are read, checked and written, once instead of"
    " twice, which makes blockd's own share look larger than it is. Debian's configuration is the"
    f" package's own, archive and backup included. Looked at every {POLL_S * 1000:g} ms; contenders"
    " take turns, and all counts of snapshots are gone through several times."
)


def _measure(counts: list[int], passes: int, rounds_each: int) -> dict[int, Samples]:
    if os.geteuid() != 0:
        raise NoLoopDevice("loop devices need root")
    if not DEBIAN_CONF.exists():
        raise NoLoopDevice(f"{DEBIAN_CONF} is missing: install the package lvm2")
    found: dict[int, Samples] = {}
    # Not /tmp, which may be memory: catalog and volume group shall be on a disk.
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp")))
        device = stack.enter_context(loop_device(folder, _DISK_BYTES))
        vg = f"blockdbench{os.getpid()}"
        ours, debian = _configurations(folder, device)
        ours.run("vgcreate", "--metadatasize", "64m", "--setautoactivation", "n", vg, device)
        backup = folder / "empty.vg"
        ours.run("vgcfgbackup", "--file", str(backup), vg)
        empty = backup.read_text("utf-8")
        make, erase = bare_contenders(ours, debian, lambda lvm, name: _linear(lvm, vg, name), vg)
        for number in range(passes):
            for count in counts:
                progress(f"native: pass {number + 1} of {passes}, {count} snapshots")
                names = restore(ours, vg, empty, count, TAG, folder / "crafted.vg")
                root = folder / f"{number}-{count}"
                root.mkdir()
                place = Place(str(root), vg, str(ours.system_dir), names)
                with _daemon(place) as connection:
                    rounds = Rounds(connection, VOLUME_ID, make, erase)
                    rounds.run(rounds_each)
                _add(
                    found.setdefault(count, defaultdict(lambda: defaultdict(list))), rounds.samples
                )
    return found


def _configurations(folder: Path, device: str) -> tuple[BareLvm, BareLvm]:
    """blockd's LVM configuration and Debian's, both without activation."""
    ours = BareLvm(folder / "blockd-lvm")
    write_lvm_config(ours.system_dir, [device], udev=False, reserved_memory_kib=8192)
    with (ours.system_dir / "lvm.conf").open("a", encoding="utf-8") as file:
        file.write(f"{_NO_ACTIVATION}\n")
    return ours, debian_lvm(folder / "debian-lvm", [_NO_ACTIVATION, _NO_UDEV])


def _linear(lvm: BareLvm, vg: str, name: str) -> float:
    return lvm.run("lvcreate", *LINEAR, "--addtag", TAG, "--name", name, vg)


def _add(total: Samples, more: Mapping[str, Mapping[str, list[float]]]) -> None:
    for what, by_who in more.items():
        for who, samples in by_who.items():
            total[what][who] += samples


@contextlib.contextmanager
def _daemon(place: Place) -> Iterator[Connection]:
    """A daemon of its own for one volume group, and a connection to it."""
    root = Path(place.root)
    (root / "place.json").write_text(json.dumps(asdict(place)), "utf-8")
    with (
        (root / "log").open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "tests.bench.native_daemon", str(root / "place.json")],
            stdout=subprocess.PIPE,
            stderr=log,
        ) as process,
    ):
        try:
            if process.stdout is None or process.stdout.readline() != b"READY\n":
                raise RuntimeError((root / "log").read_text("utf-8"))
            with Connection(root / "blockd.sock") as connection:
                yield connection
        finally:
            process.terminate()
            process.wait(_READY_S)


def _slopes(found: Mapping[int, Samples]) -> str:
    """What each snapshot that is there already adds."""
    rows = []
    for what in (MAKE, ERASE):
        slopes = {who: _slope(found, what, who) for who in (BLOCKD, OURS, DEBIAN)}
        us = [f"{slope * 1e6:.1f}" for slope in slopes.values()]
        rows.append([what, *us, slopes[BLOCKD] / slopes[OURS], slopes[BLOCKD] / slopes[DEBIAN]])
    low, high = min(found), max(found)
    head = [f"what, {low} to {high:,} snapshots", "blockd, us per snapshot"]
    head += ["bare, blockd's config", "bare, Debian's config", "blockd / bare", "blockd / Debian"]
    return table(head, rows)


def _slope(found: Mapping[int, Samples], what: str, who: str) -> float:
    """Seconds per snapshot, between the medians at the fewest and at the most."""
    low, high = min(found), max(found)
    rise_ms = median_ms(found[high][what][who]) - median_ms(found[low][what][who])
    return rise_ms / 1000 / (high - low)
