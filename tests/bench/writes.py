"""Part `writes`: what snapshots cost later: a first write under N of them, and going back to one.

Both classes side by side in the lab, thin on the first disk and thick on the second.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from blockd.domain.units import MIB
from tests.bench.both_classes import DISKS, both_classes
from tests.bench.client import SNAPSHOTS, VOLUMES, Connection
from tests.bench.guest import progress, run_in_lab
from tests.bench.report import Section, table

_COUNTS = (0, 1, 2, 4, 8)
#: The chunk of the thin pool; a chunk of bssd is a block.
_CHUNK_BYTES, _BLOCK_BYTES = 64 * 1024, 4096
#: Three runs under each of five counts, each chunk once: 3,840 of the 4,096 there are.
_WRITES, _VOLUME_MIB = 256, 256
#: A revert takes longer than one of the looks at it, which want the one CPU as well.
_REVERT_POLL_S = 0.02


def section(*, quick: bool) -> Section:
    """Boot the lab, run `main` there, and make tables of what it found."""
    arguments = ["1", "1", "256", "8,32"] if quick else ["3", "2", "256,1024", "8,32,128"]
    found = run_in_lab("tests.bench.writes", arguments, trash_keep="0s", disks=("8G", "8G"))
    text = (
        f"In `scripts/lab`, volumes written over in full beforehand. *First*: {_WRITES} writes of"
        " 4 KiB with O_DIRECT through the front, one after another, each into another chunk of"
        " 64 KiB that nothing was written to since any of the snapshots; one fsync ends them and"
        " counts. *Second*: the same blocks once more. *Written*: bytes that reach the disk for"
        " each byte of the user's, of all runs, from `/sys/block/…/stat`: exact, and the same on"
        " any host. Microseconds are the median run's; system calls are slow in the lab: compare."
    )
    reverts = (
        "Seconds from sending `POST …/revert` (`keep_previous` false) until the volume is"
        " `available`, mean of two; what was changed since the snapshot are pieces of 64 KiB all"
        f" over the volume. Looked at every {_REVERT_POLL_S * 1000:g} ms."
    )
    tables = _writes_table(found["writes"]), _reverts_table(found["reverts"])
    return Section("writes", f"{text}\n\n{tables[0]}\n\n{reverts}\n\n{tables[1]}")


def _writes_table(found: Sequence[dict[str, Any]]) -> str:
    cells: dict[int, list[str]] = defaultdict(list)
    head = ["snapshots"]
    for kind, key in (("written", "times"), ("us", "us")):
        for which in ("first", "second"):
            for name in DISKS:
                head.append(f"{name} {which}, {kind}")
                for one in found:
                    if one["class"] == name:
                        samples = [run[key] for run in one[which]]
                        cell = (
                            f"{mean(samples):.2f}" if key == "times" else f"{median(samples):.0f}"
                        )
                        cells[one["snapshots"]].append(cell)
    return table(head, [(count, *row) for count, row in cells.items()])


def _reverts_table(found: Sequence[dict[str, Any]]) -> str:
    cells: dict[tuple[int, int], list[str]] = defaultdict(list)
    for name in DISKS:
        for one in found:
            if one["class"] == name:
                where = one["changed_mib"], one["volume_mib"]
                cells[where].append(f"{mean(one['seconds']):.2f}")
    head = ("changed, MiB", "volume, MiB", *(f"{name}, s" for name in DISKS))
    return table(head, [(*where, *row) for where, row in sorted(cells.items())])


def main() -> None:
    """In the guest: `RUNS REVERTS VOLUME_MIB,… CHANGED_MIB,…`; prints what it found as JSON."""
    runs, reverts_each = map(int, sys.argv[1:3])
    volumes_mib, changes_mib = ([int(mib) for mib in text.split(",")] for text in sys.argv[3:])
    with both_classes() as connection:
        bench = _Bench(connection)
        writes = bench.writes(runs)
        reverts = [
            one
            for volume_mib in volumes_mib
            for name in DISKS
            for one in bench.reverts(name, volume_mib, changes_mib, reverts_each)
        ]
    json.dump({"writes": writes, "reverts": reverts}, sys.stdout)


class _Bench:
    """The measurements, through one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._chance = connection, random.Random(5)
        self._noise = mmap.mmap(-1, MIB)  # page-aligned, as O_DIRECT wants it
        self._noise.write(os.urandom(MIB))

    def writes(self, runs_each: int) -> list[dict[str, Any]]:
        """Per count and class: `first` and `second`, per run `us` and `times` (see `_measure`)."""
        found = []
        volumes = {name: self._volume(name, _VOLUME_MIB) for name in DISKS}
        chunks = range(_VOLUME_MIB * MIB // _CHUNK_BYTES)
        places = self._chance.sample(chunks, len(_COUNTS) * runs_each * _WRITES)
        taken = 0
        for count in _COUNTS:
            progress(f"first writes under {count} snapshots")
            for volume in (*volumes.values(),) * (count - taken):
                self._snapshot(volume)
            taken = count
            runs = [[places.pop() for _ in range(_WRITES)] for _ in range(runs_each)]
            for name, volume in volumes.items():
                one: dict[str, Any] = {"class": name, "snapshots": count, "first": [], "second": []}
                for run in runs:
                    for which in ("first", "second"):
                        one[which].append(self._measure(volume, run, DISKS[name]))
                found.append(one)
        return found

    def _measure(self, volume: str, chunks: Sequence[int], disk: str) -> dict[str, float]:
        """Write a block in each: `us` for one, and `times` as many bytes on the disk."""
        within = range(0, _CHUNK_BYTES, _BLOCK_BYTES)
        places = [chunk * _CHUNK_BYTES + within[chunk % len(within)] for chunk in chunks]
        before_bytes = _written_bytes(disk)
        seconds = self._write(volume, places, _BLOCK_BYTES)
        disk_bytes = _written_bytes(disk) - before_bytes
        times = disk_bytes / (len(places) * _BLOCK_BYTES)
        return {"us": seconds * 1e6 / len(places), "times": times}

    def reverts(
        self, name: str, volume_mib: int, changes_mib: Sequence[int], reverts_each: int
    ) -> Iterator[dict[str, Any]]:
        """Per amount changed: the `seconds` of each revert."""
        volume = self._volume(name, volume_mib)
        snapshot = self._snapshot(volume)
        chunks = range(0, volume_mib * MIB, _CHUNK_BYTES)
        for changed_mib in changes_mib:
            progress(f"{name}: reverts of {volume_mib} MiB with {changed_mib} MiB changed")
            seconds = []
            for _ in range(reverts_each):
                places = self._chance.sample(chunks, changed_mib * MIB // _CHUNK_BYTES)
                self._write(volume, places, _CHUNK_BYTES)
                began = time.monotonic()
                body = {"snapshot_id": snapshot, "keep_previous": False}
                self._connection.call("POST", f"/host/v1/volumes/{volume}/revert", body)
                self._connection.until(f"{VOLUMES}/{volume}", poll_s=_REVERT_POLL_S)
                seconds.append(time.monotonic() - began)
                self._connection.until(f"{SNAPSHOTS}/{snapshot}")
            where = {"class": name, "volume_mib": volume_mib, "changed_mib": changed_mib}
            yield {**where, "seconds": seconds}

    def _volume(self, name: str, size_mib: int) -> str:
        """Written over in full; its id."""
        progress(f"{name}: writing a volume of {size_mib} MiB")
        new = {"class": name, "from_empty": {"size": size_mib * MIB}}
        volume = str(self._connection.call("POST", VOLUMES, new)["id"])
        self._connection.until(f"{VOLUMES}/{volume}")
        self._write(volume, range(0, size_mib * MIB, MIB), MIB)
        return volume

    def _snapshot(self, volume: str) -> str:
        snapshot = self._connection.call("POST", SNAPSHOTS, {"volume_id": volume})
        self._connection.until(f"{SNAPSHOTS}/{snapshot['id']}")
        return str(snapshot["id"])

    def _write(self, volume: str, places: Sequence[int], length_bytes: int) -> float:
        """Noise at each place, through the front and past the page cache; the seconds it took."""
        path = self._connection.call("GET", f"/host/v1/volumes/{volume}/device")["path"]
        descriptor = os.open(path, os.O_WRONLY | os.O_DIRECT)
        with memoryview(self._noise)[:length_bytes] as noise:
            began = time.monotonic()
            for place in places:
                os.pwrite(descriptor, noise, place)
            os.fsync(descriptor)
            took_s = time.monotonic() - began
        os.close(descriptor)
        return took_s


def _written_bytes(disk: str) -> int:
    """Since boot; the unit is 512 bytes whatever the disk's sector (Documentation/block/stat)."""
    return int(Path(f"/sys/block/{disk}/stat").read_text().split()[6]) * 512


if __name__ == "__main__":
    main()
