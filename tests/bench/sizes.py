"""Part `sizes`: the same data in thin volumes of other sizes, exported on a real device-mapper."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path
from statistics import median

from blockd.domain.units import GIB, MIB
from tests.bench.client import SNAPSHOTS, VOLUMES, Connection
from tests.bench.guest import progress, run_in_lab
from tests.bench.report import Section, table

_SIZES_GIB = (1, 10, 100)
_PIECE_BYTES, _PIECES = 4 * MIB, 75
#: 111 GiB of volumes in a pool of 7.
_CLASS = '[classes.sbs]\nkind = "thin"\nvg = "lab"\npool = "pool"\novercommit = 100\n'


def section(*, quick: bool) -> Section:
    """Boot the lab, run `main` there, and make a table of what it found."""
    rounds = str(1 if quick else 5)
    found = run_in_lab("tests.bench.sizes", [rounds], trash_keep="0s", sections=_CLASS)
    least_s = min(median(one["seconds"]) for one in found)
    least_bytes = min(one["object_bytes"] for one in found)
    rows = [
        (
            one["size_gib"],
            f"{median(one['seconds']):.2f}",
            f"{median(one['seconds']) / least_s:.2f}",
            f"{one['object_bytes'] / MIB:.2f}",
            f"{one['object_bytes'] / least_bytes:.3f}",
        )
        for one in found
    ]
    head = ("volume, GiB", "export, s", "of the fastest", "object, MiB", "of the smallest")
    text = (
        "Thin volumes with the same 300 MiB of noise, in pieces of 4 MiB all over them, in"
        " `scripts/lab`: from sending the request to export until the snapshot is `available`"
        " again, median; volumes take turns. Goals: 1.20 times, and 1.02 times."
    )
    return Section("sizes", f"{text}\n\n{table(head, rows)}")


def main() -> None:
    """In the guest: `ROUNDS`; prints what it found as JSON."""
    rounds, bucket = int(sys.argv[1]), os.environ["BLOCKD_S3_BUCKET"]
    with Connection(Path(os.environ["BLOCKD_SOCKET"])) as connection:
        snapshots = {gib: _snapshot(connection, gib) for gib in _SIZES_GIB}
        seconds: dict[int, list[float]] = {gib: [] for gib in _SIZES_GIB}
        for number in range(rounds):
            for gib in _SIZES_GIB[number % 3 :] + _SIZES_GIB[: number % 3]:
                progress(f"round {number + 1} of {rounds}: {gib} GiB")
                one = f"{SNAPSHOTS}/{snapshots[gib]}"
                began = time.monotonic()
                # One key for all: the guest's memory, where objects lie, has no room for three.
                where = {"bucket": bucket, "key": "size.qcow2"}
                connection.call("POST", f"{one}/export-to-object-storage", where)
                connection.until(one)
                seconds[gib].append(time.monotonic() - began)
        jobs = connection.call("GET", "/host/v1/jobs")["jobs"]
        assert all(job["state"] == "succeeded" for job in jobs), jobs
        sizes = {job["snapshot_id"]: job["bytes_total"] for job in jobs}
    found = [
        {"size_gib": gib, "seconds": seconds[gib], "object_bytes": sizes[snapshots[gib]]}
        for gib in _SIZES_GIB
    ]
    json.dump(found, sys.stdout)


def _snapshot(connection: Connection, gib: int) -> str:
    """Of a volume with the data."""
    progress(f"writing {_PIECES * _PIECE_BYTES // MIB} MiB to a volume of {gib} GiB")
    new = {"name": f"v{gib}", "from_empty": {"size": gib * GIB}}
    volume = connection.call("POST", VOLUMES, new)
    connection.until(f"{VOLUMES}/{volume['id']}")
    device = connection.call("GET", f"/host/v1/volumes/{volume['id']}/device")["path"]
    places = random.Random(gib).sample(range(gib * GIB // _PIECE_BYTES), _PIECES)
    descriptor = os.open(device, os.O_WRONLY)
    for place in places:
        os.pwrite(descriptor, os.urandom(_PIECE_BYTES), place * _PIECE_BYTES)
    os.fsync(descriptor)
    os.close(descriptor)
    snapshot = connection.call("POST", SNAPSHOTS, {"name": "s", "volume_id": volume["id"]})
    connection.until(f"{SNAPSHOTS}/{snapshot['id']}")
    return str(snapshot["id"])


if __name__ == "__main__":
    main()
