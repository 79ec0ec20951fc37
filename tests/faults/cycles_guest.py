"""Creates and deletes, over and over, in the guest, and counts what must not grow.

    python -m tests.faults.cycles_guest FOLDER FIRST LAST

A cycle makes a volume and erases it; one of eight also a snapshot, one of a hundred exports that.
A line of JSON is added to FOLDER/cycles.jsonl from time to time, whenever nothing is under way.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from blockd.domain.effects import SideEffects
from blockd.storage.dm import DeviceMapper, open_device_mapper
from tests.faults.notes import Notes
from tests.faults.ops import settle
from tests.support.client import Api
from tests.support.daemon import VG, Daemon, Place
from tests.support.object_store import object_store

DISK, STATE_DISK = Path("/dev/ubda"), Path("/dev/ubdb")
RUN, STATE = Path("/run/blockd-faults"), Path("/var/lib/blockd-faults")
SIZE = 1024 * 1024
#: Made at once; LVM erases up to 16 disks in one process.
_AT_ONCE, _SAMPLE, _EXPORT = 8, 200, 100


def main(folder: Path, first: int, last: int) -> None:
    """Cycles `first` to `last`, the last not included."""
    RUN.mkdir()
    STATE.mkdir(parents=True, exist_ok=True)
    subprocess.run(["/sbin/mkfs.ext4", "-q", str(STATE_DISK)], check=True)
    subprocess.run(["/bin/mount", str(STATE_DISK), str(STATE)], check=True)
    with (
        object_store(STATE) as server,
        open_device_mapper(SideEffects()) as mapper,
    ):
        samples = Notes(folder / "cycles.jsonl")
        place = Place(state=STATE, run=RUN, disk=DISK, trash_keep="0s", object_storage=server)
        place.make_pool()
        with Daemon(place) as daemon:
            began, boot = time.monotonic(), int(time.time())
            for cycle in range(first, last, _AT_ONCE):
                exports = cycle % _EXPORT < _AT_ONCE
                _cycles(daemon.api, min(_AT_ONCE, last - cycle), exports=exports)
                done = min(cycle + _AT_ONCE, last)
                if done % _SAMPLE < _AT_ONCE or done == last:
                    settle(daemon.api)
                    sample = {
                        "boot": boot,
                        "cycles": done,
                        "devices": len(mapper.devices("")),
                        "descriptors": len(os.listdir(f"/proc/{daemon.pid}/fd")),
                        "thin_ids": _thin_ids(mapper),
                        "uploads": len(server.uploads()),
                        "memory_kib": _memory_kib(daemon.pid),
                        "took_s": round(time.monotonic() - began, 1),
                    }
                    samples.add(**sample)
                    print(sample, flush=True)


def _cycles(api: Api, count: int, *, exports: bool) -> None:
    made = [
        api.block("POST", "volumes", {"name": f"v{n}", "from_empty": {"size": SIZE}})["id"]
        for n in range(count)
    ]
    volumes = [api.settled("volumes", volume_id) for volume_id in made]
    snapshot_id = api.snapshot("s", volumes[0])
    if exports:
        api.export(snapshot_id, "cycles/one.qcow2")
        assert api.job_of(snapshot_id)["state"] == "succeeded"
    api.block("DELETE", f"snapshots/{snapshot_id}")
    for volume_id in volumes:
        api.block("DELETE", f"volumes/{volume_id}")


def _thin_ids(mapper: DeviceMapper) -> int:
    """How many the kernel knows, by its own metadata."""
    pool = mapper.info_of_name(f"{VG}-pool-tpool") or mapper.info_of_name(f"{VG}-pool")
    assert pool is not None
    mapper.message(pool.uuid, "reserve_metadata_snap")
    try:
        metadata = f"/dev/mapper/{VG}-pool_tmeta"
        listed = subprocess.run(
            ["/usr/sbin/thin_ls", "-m", "--no-headers", "-o", "DEV", metadata],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    finally:
        mapper.message(pool.uuid, "release_metadata_snap")
    return len(listed.stdout.split())


def _memory_kib(pid: int) -> int:
    """What the daemon has in memory and nobody shares with it."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (kib,) = [int(line.split()[1]) for line in lines if line.startswith("RssAnon:")]
    return kib


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
