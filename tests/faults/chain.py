"""Crash after crash on one volume group: each start looks at what the crash before it left.

The points at which to crash are not listed anywhere: a first, unharmed run of the verb records
every side effect that the daemon announces, and each of them is then made fatal in turn.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path

from tests.faults.scenarios import SCENARIOS, Scenario, delete_all
from tests.support.agreement import expect_agreement, foreign_lvs
from tests.support.client import Api
from tests.support.crash_daemon import Death
from tests.support.daemon import VG, Daemon, Place

EVENT_WORDS = ("before ", "started ", "after ")
#: They change nothing, and come when somebody asks.
_QUESTIONS = ("lvm lvs", "lvm vgs", "lvm pvs")
#: Side effects of which a power cut leaves nothing.
_FORGOTTEN = (
    *("dm create", "dm load", "dm clear", "dm resume", "dm remove", "link "),
    *_QUESTIONS,
)
FOREIGN = ("alien", "blockd-00000000-0000-4000-8000-000000000000")


def make_foreign(place: Place) -> None:
    """LVs of somebody else in our volume group: one named like ours, one tagged like another's."""
    space = ("-L", "4m") if place.kind == "thick" else ("-V", "4m", "--thinpool", "pool")
    for name, tag in zip(FOREIGN, ("keep", "blockd.someone-else"), strict=True):
        place.lvm("lvcreate", "-y", *space, "--addtag", tag, "-n", name, VG)


def mount_disk(disk: Path, where: Path, *, make: bool, options: str = "defaults") -> None:
    """A file system on a disk of its own."""
    where.mkdir(parents=True, exist_ok=True)
    if make:
        subprocess.run(["/sbin/mkfs.ext4", "-q", str(disk)], check=True)
    subprocess.run(["/bin/mount", "-o", options, str(disk), str(where)], check=True)


def record(place: Place, scenario: Scenario) -> list[str]:
    """Every event of the unharmed verb, in order."""
    events = place.state / "events"
    events.unlink(missing_ok=True)
    _last(place).unlink(missing_ok=True)
    with Daemon(place, Death(record=events)) as daemon:
        delete_all(daemon.api)
        facts = scenario.prepare(daemon.api)
        _settle(daemon.api, scenario)
        daemon.arm()
        answers: list[bool] = []
        scenario.act(daemon.api, facts, lambda: answers.append(True))
        assert answers
        daemon.api.idle()
        recorded = events.read_text().splitlines()
        _look(place, daemon, scenario, facts, answered=True)
        _expect_nothing_left(place, scenario, daemon)
    assert recorded, "the verb announced no side effect"
    return recorded


def fatal_points(events: list[str], how: str) -> list[int]:
    """The events worth dying at.

    `kill`: `after` one side effect and `before` the next are the same state of the world, except
    after a commit, when the answer may have gone out, and at the very end. A question to LVM makes
    no other state.

    `power`: what the kernel holds goes, too, so that what changes nothing on a disk makes no other
    state; of those at which the same is on the disks the last one, as most was promised by then.
    """
    changes = [n for n, event in enumerate(events) if not _is_question(event)]
    last = changes[-1]
    if how == "power":
        return [
            *(this for this, following in pairwise(changes) if _is_lasting(events[following])),
            last,
        ]
    return [
        number
        for number in changes
        if not events[number].startswith("after ")
        or events[number].startswith("after commit")
        or number == last
    ]


def named(events: list[str], at: int) -> str:
    """An event by its name and how many such come before it: `0 after commit volume created`.

    Other things that go on, such as the answer to a question about the pool, come between those of
    the verb as they like, and must not shift the point at which it dies.
    """
    return f"{events[:at].count(events[at])} {events[at]}"


def _is_question(event: str) -> bool:
    return event.partition(" ")[2].startswith(_QUESTIONS)


def _is_lasting(event: str) -> bool:
    """Whether this event is the first at which something else is on a disk.

    A suspended device has written out what was on its way to it.
    """
    when, _, what = event.partition(" ")
    return when != "before" and not what.startswith(_FORGOTTEN)


def crash(place: Place, scenario: Scenario, at: str, how: str) -> None:
    """One link: check what the last crash left, then do the verb and die at an event: `named`."""
    number, _, event = at.partition(" ")
    with Daemon(place, Death(at=int(number), event=event, how=how)) as daemon:
        check_last(place, daemon)
        facts = scenario.prepare(daemon.api)
        _settle(daemon.api, scenario)
        last = {"scenario": scenario.name, "at": at, "how": how, "facts": facts, "answered": False}
        _note(place, last)
        daemon.arm()
        scenario.act(daemon.api, facts, lambda: _note(place, last | {"answered": True}))
        assert daemon.ended() == -signal.SIGKILL, "the daemon did not die at this point"


def end(place: Place, scenario: Scenario) -> None:
    """The last link: only the check."""
    with Daemon(place) as daemon:
        check_last(place, daemon)
        _expect_nothing_left(place, scenario, daemon)


def _expect_nothing_left(place: Place, scenario: Scenario, daemon: Daemon) -> None:
    """All is erased that was made, and nothing of anybody else's."""
    _settle(daemon.api, scenario)
    expect_agreement(place)
    assert {name.split("/")[0] for name in foreign_lvs(place)} == set(FOREIGN)


def check_last(place: Place, daemon: Daemon) -> None:
    """What the crash before this start left."""
    daemon.api.idle()
    if not _last(place).exists():
        return
    last = json.loads(_last(place).read_text())
    scenario = SCENARIOS[last["scenario"]]()
    try:
        _look(place, daemon, scenario, last["facts"], answered=last["answered"])
    except BaseException as error:
        log = daemon.log.read_text()[-4000:]
        error.add_note(f"after {last}; the daemon's log:\n{log}")
        raise
    _last(place).unlink()


def _look(
    place: Place, daemon: Daemon, scenario: Scenario, facts: dict[str, str], *, answered: bool
) -> None:
    """What is cleared away here and not erased yet is seen to be gone in the next link."""
    _settle(daemon.api, scenario)
    expect_agreement(place)
    scenario.check(daemon.api, facts, answered)
    delete_all(daemon.api)


def _settle(api: Api, scenario: Scenario) -> None:
    """Wait until what was in the trash is erased, where nothing is kept there."""
    deadline = time.monotonic() + 60
    while scenario.trash_keep == "0s" and any(
        item["status"] == "deleted"
        for kind in ("volumes", "snapshots")
        for item in api.all(kind, "&include_deleted=true")
    ):
        assert time.monotonic() < deadline, "the trash is not emptied"
        time.sleep(0.05)
    api.idle()


def _last(place: Place) -> Path:
    return (place.notes or place.state) / "last-crash.json"


def _note(place: Place, value: object) -> None:
    """Durably, and whole or not at all: the plug is pulled soon."""
    path = _last(place)
    fresh = path.with_suffix(".new")
    with fresh.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
