"""Part `lab`: the daemon and bare LVM side by side on a real device-mapper.

Both snapshot an active thin volume of their own in one pool; blockd's front is up.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from uuid import uuid4

from blockd.config import read_config
from tests.bench.bare import BareLvm, debian_lvm
from tests.bench.client import POLL_S, VOLUMES, Connection
from tests.bench.guest import progress, run_in_lab
from tests.bench.report import Section
from tests.bench.rounds import Rounds, Samples, bare_contenders, comparison

_ORIGIN_BYTES = 64 * 1024**2
#: No udevd and no dmeventd in the lab: LVM would wait for the one and start the other.
_LAB_CHANGES = ("activation { udev_sync = 0\n udev_rules = 0\n monitoring = 0 }",)


def section(*, quick: bool) -> Section:
    """Boot the lab, run `main` there, and make a table of what it found."""
    counts, rounds = ([10], 3) if quick else ([10, 100], 21)
    arguments = [str(rounds), *map(str, counts)]
    found: dict[str, Samples] = run_in_lab("tests.bench.lab", arguments, trash_keep="0s")
    text = (
        "Milliseconds, median (first to third quartile), in `scripts/lab` (user-mode-linux on one"
        " CPU, the host's LVM), on an active thin volume with a front. *create* runs from sending"
        " `POST …/snapshots` until `GET` says `available`, *erase* (`trash.keep = 0s`) from sending"
        " `DELETE` until its `lvremove` has ended. The bare commands are `lvcreate -s -pr -ky -an"
        " --addtag` and `lvremove`, from start to end of the process; Debian's configuration is the"
        " package's own, less udev and monitoring, which the lab lacks. One keep-alive connection,"
        f" looked at every {POLL_S * 1000:g} ms. The contenders take turns, the first one changes"
        " from round to round. System calls are slow in the lab: compare, and take no figure here"
        " for what a host does.\n\n"
    )
    return Section("lab", text + comparison({int(count): one for count, one in found.items()}))


def main() -> None:
    """In the guest: `ROUNDS COUNT…`; prints the samples as JSON."""
    rounds_each, counts = int(sys.argv[1]), [int(text) for text in sys.argv[2:]]
    vg = os.environ["BLOCKD_VG"]
    ours = BareLvm(read_config(Path(os.environ["BLOCKD_CONFIG"])).lvm.system_dir)
    debian = debian_lvm(Path(tempfile.mkdtemp()) / "debian", _LAB_CHANGES)
    tag = f"bench.{uuid4()}"  # as long as blockd's
    found: dict[int, Samples] = {}
    with Connection(Path(os.environ["BLOCKD_SOCKET"])) as connection:
        volume = connection.call(
            "POST", VOLUMES, {"name": "origin", "from_empty": {"size": _ORIGIN_BYTES}}
        )
        connection.until(f"{VOLUMES}/{volume['id']}")
        ours.run(
            "lvcreate",
            *("--virtualsize", f"{_ORIGIN_BYTES}b", "--thinpool", "pool", "--wipesignatures", "n"),
            *("--setactivationskip", "y", "--ignoreactivationskip", "--name", "bare", vg),
        )
        make, erase = bare_contenders(
            ours, debian, lambda lvm, name: lvm.snapshot(vg, "bare", name, tag), vg
        )
        there = 0
        for count in counts:
            progress(f"filling up to {count} snapshots")
            while there < count:
                ours.snapshot(vg, "bare", f"blockd-{uuid4()}", tag)
                there += 1
            progress(f"{rounds_each} rounds at {count} snapshots")
            rounds = Rounds(connection, volume["id"], make, erase)
            rounds.run(rounds_each)
            found[count] = rounds.samples
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
