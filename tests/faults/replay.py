"""The crash replay, from the host: a guest records, guests replay, and a file says what came of it.

All of it lies in a folder for each kind of class, so that it can be stopped and taken up again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.crash_points import Point, Recording, all_points, choose
from tests.faults.guest import Guests
from tests.faults.notes import Notes, read_notes
from tests.faults.write_log import open_log

KINDS = ("thin", "thick")

_RECORDED = ("664M", "2G")  # as crash_disk has it: the disk, its log
_REPLAYED = (*_RECORDED, "664M", "256M")  # the disk rebuilt, changes to it
#: A guest starts in ten seconds; one that hangs is given up with the point that it was at.
_POINTS_PER_GUEST = 100
_RECORD_S, _GUEST_S, _PER_POINT_S = 600.0, 120.0, 30.0


@dataclass(frozen=True)
class Result:
    """Of one point: `failure` is empty, or what was found, with the end of the daemon's log."""

    entries: int
    op: str
    took_s: float
    failure: str


class Replay:
    """One kind of class; its folder holds disks, log, recording and results."""

    def __init__(self, folder: Path, kind: str, cpu: int | None = None) -> None:
        self.folder, self.kind = folder, kind
        self._notes = folder / "points.jsonl"
        self._guests = Guests(folder, cpu)
        self.stop = self._guests.stop

    def record(self) -> None:
        """Carry out the history, unless that was done; what is there of an earlier one goes.

        Raises:
            AssertionError: it did not end well.
        """
        if (self.folder / "recording.json").exists():
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        argv = ("tests.faults.record_guest", self.kind, str(self.folder))
        status, said = self._guests.run(_RECORDED, argv, _RECORD_S)
        assert status == 0, said

    def points(self, during: str = "") -> list[Point]:
        """All that there are; those of operations that are told with these words."""
        ops = Recording.load(self.folder / "recording.json").ops
        with open_log(self.folder / "ubdb.img") as log:
            points = all_points(log.entries)
        return [p for p in points if not during or (p.op >= 0 and during in str(ops[p.op]))]

    def results(self) -> list[Result]:
        """What is known up to now: of each point what came of it last."""
        known = {note["entries"]: Result(**note) for note in read_notes(self._notes)}
        return [known[entries] for entries in sorted(known)]

    def replay(
        self, count: int, news: Callable[[], None] = lambda: None, *, during: str = ""
    ) -> list[Result]:
        """Try so many points, less those that were good already; the results of all.

        Args:
            during: see `points`.
            news: is called whenever a guest has ended.
        """
        good = {result.entries for result in self.results() if not result.failure}
        waiting = [
            point for point in choose(self.points(during), count) if point.entries not in good
        ]
        while waiting:
            batch, noted = waiting[:_POINTS_PER_GUEST], len(read_notes(self._notes))
            argv = [str(point.entries) for point in batch]
            limit_s = _GUEST_S + _PER_POINT_S * len(argv)
            status, said = self._guests.run(
                _REPLAYED, ("tests.faults.replay_guest", str(self.folder), *argv), limit_s
            )
            tried = {note["entries"] for note in read_notes(self._notes)[noted:]}
            left = [point for point in batch if point.entries not in tried]
            if left:
                self._give_up(left[0], f"the guest ended with {status}:\n{said}")
                tried.add(left[0].entries)
            waiting = [point for point in waiting if point.entries not in tried]
            news()
        return self.results()

    def _give_up(self, point: Point, failure: str) -> None:
        op = str(Recording.load(self.folder / "recording.json").ops[point.op])
        Notes(self._notes).add(entries=point.entries, op=op, took_s=0, failure=failure)
