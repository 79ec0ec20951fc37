"""What strikes a campaign's daemon, host, disks and object store."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.campaign_disks import POOL_MIB, Disks
from tests.support import stamps
from tests.support.client import Api, ApiError
from tests.support.crash_daemon import Death
from tests.support.faulty_store import Fault, FaultyStore

#: How often each comes, relatively.
WEIGHTS = {
    "kill": 30,
    "power cut": 20,
    "disk fails": 10,
    "bad sectors": 8,
    "pool full": 8,
    "metadata full": 6,
    "object store": 18,
}
#: Side effects of all operations of a round are more than this as a rule.
_MOST_EFFECTS = 60
_FILLER = "filler"


@dataclass(frozen=True)
class Strike:
    """One of them.

    Attributes:
        at: the side effect at which the daemon dies, or the guest.
        may_fail: operations that were answered may fail.
        ends_host: whether the guest is to die when the clients are done.
    """

    kind: str
    at: int

    @property
    def death(self) -> Death | None:
        """Of the daemon; None: it lives."""
        how = {"kill": "kill", "power cut": "power"}.get(self.kind)
        return Death(at=self.at, how=how) if how else None

    @property
    def may_fail(self) -> bool:
        """Whether operations that were answered may fail."""
        return self.kind not in ("kill", "power cut")

    def over(
        self, disks: Disks, store: FaultyStore, api: Api, chance: random.Random
    ) -> AbstractContextManager[None]:
        """The trouble, for the length of the block."""
        match self.kind:
            case "disk fails":
                return disks.failing(chance.choice((0, 1, 2)), chance.choice((1, 2)))
            case "bad sectors":
                return disks.bad_sectors(chance, 300)
            case "pool full":
                return _pool_full(api)
            case "metadata full":
                return _metadata_full(disks)
            case "object store":
                return _store_fails(store, chance)
        return _nothing()


def choose(chance: random.Random) -> Strike:
    """The next one."""
    (kind,) = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))
    return Strike(kind, chance.randrange(_MOST_EFFECTS))


def pull_the_plug() -> None:
    """The guest is gone; nothing is written back."""
    Path("/proc/sysrq-trigger").write_text("c", encoding="ascii")


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _pool_full(api: Api) -> Iterator[None]:
    """A volume of nobody's takes all the room there is; it goes when the trouble ends."""
    size_bytes = (POOL_MIB + 64) * 2**20
    try:
        filler = api.create_volume(_FILLER, size_bytes)
        with stamps.opened(api.device(filler), write=True) as device:
            device.write(1)
    except (ApiError, OSError):
        pass  # no more room: that is what was wanted
    yield


def remove_filler(api: Api) -> None:
    """After a strike, and after the crash that may have followed it."""
    for volume in api.all("volumes"):
        if volume["name"] == _FILLER:
            api.block("DELETE", f"volumes/{volume['id']}")


@contextmanager
def _metadata_full(disks: Disks) -> Iterator[None]:
    disks.fill_metadata()
    yield


@contextmanager
def _store_fails(store: FaultyStore, chance: random.Random) -> Iterator[None]:
    """Some of the requests that come next."""

    def some(_: str) -> bool:
        return chance.random() < 0.3

    kinds = ("refuse", "reset", "status", "cut", "damage")
    store.faults = [Fault(some, chance.choice(kinds), times=3) for _ in range(6)]
    try:
        yield
    finally:
        store.faults = []
