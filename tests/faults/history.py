"""The operations that are recorded for the crash replay: each verb, on one volume group."""

from __future__ import annotations

from collections.abc import Iterator

from tests.faults.world import KEPT, Op

#: 4 MiB and a block: off the grid of extents.
SMALL, LARGE = 1025, 2500


def history(kind: str) -> list[Op]:
    """For a class of this kind (`thin` or `thick`)."""
    return list(_ops(kind))


def _ops(kind: str) -> Iterator[Op]:
    yield Op("create", "a", blocks=SMALL)
    yield Op("write", "a", generation=1, end=SMALL)
    yield Op("snapshot", "one", source="a")
    yield Op("write", "a", generation=2, start=100, end=600)
    yield Op("snapshot", "two", source="a")
    yield Op("write", "a", generation=3, start=500, end=SMALL)
    yield Op("clone", "b", source="one", blocks=LARGE)
    yield Op("write", "b", generation=4, start=1000, end=1100)
    yield Op("grow", "a", blocks=LARGE)
    yield Op("write", "a", generation=5, start=2000, end=LARGE)
    yield Op("revert", "a", source="one")
    yield Op("write", "a", generation=6, start=10, end=50)
    yield Op("revert for good", "a", source="two")
    yield Op("export", "exports/two.qcow2", source="two")
    yield Op("import", "three", source="exports/two.qcow2")
    yield Op("delete snapshot", "one")
    yield Op("create", "c", blocks=SMALL)
    # A thick one of these has no origin, and is not active: reading it costs two LVM commands.
    yield Op("delete snapshot", "three")
    yield Op("delete volume", "b")
    yield Op("write", "c", generation=7, end=300)
    yield Op("delete snapshot", "a" + KEPT)
    yield Op("group", "pair", source="a c")
    yield Op("write", "c", generation=9, start=200, end=400)
    yield Op("delete snapshot", "pair-1")
    yield Op("delete snapshot", "pair-2")
    # The volume goes and its snapshot stays: a thick one keeps its origin.
    yield Op("snapshot", "four", source="c")
    yield Op("delete volume", "c")
    yield Op("clone", "d", source="four", blocks=SMALL)
    yield Op("delete snapshot", "four")
    yield Op("keep trash")
    yield Op("snapshot", "five", source="a")
    yield Op("delete volume", "a")
    yield Op("delete snapshot", "five")
    yield Op("undelete snapshot", "five")
    yield Op("undelete volume", "a")
    yield Op("write", "a", generation=8, start=700, end=900)
