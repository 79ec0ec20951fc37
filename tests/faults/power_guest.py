"""What runs in the guest between two power cuts.

    python -m tests.faults.power_guest NOTES KIND VERB record|end|EVENT

`record` makes the volume group and records the side effects of VERB in a class of KIND; an event
(`chain.named`) checks what the last cut left, does VERB again, and cuts the power at it; `end` only
checks.
NOTES is a folder of the host's, which no power cut reaches.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
from pathlib import Path

from tests.faults import chain
from tests.faults.scenarios import SCENARIOS, Scenario
from tests.support.daemon import Place
from tests.support.object_store import object_store

#: An ext4 on a disk of its own: what the daemon did not sync is lost, as on a real host.
STATE_DISK, STATE = Path("/dev/ubdb"), Path("/var/lib/blockd-faults")
#: What the object store's answers promise is there: rclone does not sync, so its disk does.
OBJECT_DISK, OBJECTS = Path("/dev/ubdc"), Path("/var/lib/blockd-objects")
RUN = Path("/run/blockd-faults")


def main() -> None:
    """One link of the chain."""
    notes, kind, verb, step = sys.argv[1:]
    multiprocessing.set_start_method("fork")  # there is one daemon to start, and no thread yet
    scenario = SCENARIOS[verb]()
    RUN.mkdir()
    chain.mount_disk(STATE_DISK, STATE, make=step == "record")
    chain.mount_disk(OBJECT_DISK, OBJECTS, make=step == "record", options="sync,dirsync")
    with contextlib.ExitStack() as stack:
        # Objects survive the cut, uploads do not: MinIO, too, forgets them when it starts again.
        server = stack.enter_context(object_store(OBJECTS)) if scenario.needs_objects else None
        place = Place(
            state=STATE,
            run=RUN,
            notes=Path(notes),
            disk=Path("/dev/ubda"),
            kind=kind,
            trash_keep=scenario.trash_keep,
            object_storage=server,
        )
        _link(place, scenario, step)


def _link(place: Place, scenario: Scenario, step: str) -> None:
    if step == "record":
        place.make_pool()
        chain.make_foreign(place)
        print(*chain.record(place, scenario), sep="\n")
    elif step == "end":
        chain.end(place, scenario)
    else:
        chain.crash(place, scenario, step, "power")


if __name__ == "__main__":
    main()
