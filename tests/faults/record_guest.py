"""Records in the guest what a history writes to its disk.

    python -m tests.faults.record_guest KIND FOLDER

The history of a class of KIND is carried out by a daemon, and marks in the log tell when each
operation began and when it was answered. FOLDER gets `recording.json` and the objects.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

from tests.faults.crash_disk import DISK, LOG, STATE_DISK, fresh_run, mount_state, place_on, slices
from tests.faults.crash_points import START, Recording, mark
from tests.faults.history import history
from tests.faults.ops import carry_out, id_of, settle
from tests.faults.world import Op, World
from tests.support.client import Api
from tests.support.daemon import Daemon, Place
from tests.support.object_store import object_store

_LOGGED = "faults-log"


def record(kind: str, folder: Path) -> None:
    """The whole history."""
    subprocess.run(["/sbin/modprobe", "dm-log-writes"], check=True)
    sectors = sum(length for _, _, length in slices())
    _dmsetup("create", _LOGGED, "--table", f"0 {sectors} log-writes {DISK} {LOG}")
    for path, start, length in slices():
        table = f"0 {length} linear /dev/mapper/{_LOGGED} {start}"
        _dmsetup("create", path.name, "--table", table)
    subprocess.run(["/sbin/mkfs.ext4", "-q", "-E", "nodiscard", str(STATE_DISK)], check=True)
    mount_state()
    fresh_run()
    with object_store(folder) as server:
        place = place_on(kind, server, keeps_trash=False)
        place.make_pool()
        with Daemon(place):
            pass  # from here on the catalog belongs to the volume group
        _tell_log(START)
        digests = _carry_out_all(place, history(kind))
    Recording(kind, history(kind), digests).save(folder / "recording.json")
    os.sync()


def _carry_out_all(place: Place, ops: list[Op]) -> dict[str, str]:
    """Answers the digest of each object."""
    world, digests, waiting = World(), dict[str, str](), list(enumerate(ops))
    while waiting:
        keep = "24h" if world.keeps_trash else "0s"
        with Daemon(dataclasses.replace(place, trash_keep=keep)) as daemon:
            while waiting:
                number, op = waiting.pop(0)
                print(op, flush=True)
                world = world.after(op)
                _tell_log(mark(number, is_answered=False))
                if op.verb == "keep trash":
                    _tell_log(mark(number, is_answered=True))
                    break
                carry_out(daemon.api, op, place.storage_class)
                _tell_log(mark(number, is_answered=True))
                settle(daemon.api, keeps_trash=world.keeps_trash)
                if op.verb == "export":
                    digests[op.name] = _digest(daemon.api, op)
    return digests


def _digest(api: Api, op: Op) -> str:
    job = api.job_of(id_of(api, "snapshots", op.source))
    assert job["state"] == "succeeded", job
    return str(job["content_digest"])


def _tell_log(text: str) -> None:
    _dmsetup("message", _LOGGED, "0", "mark", text)


def _dmsetup(*argv: str) -> None:
    subprocess.run(["/sbin/dmsetup", *argv], check=True)


if __name__ == "__main__":
    record(sys.argv[1], Path(sys.argv[2]))
