"""A pool whose power went while a metadata snapshot was reserved or released comes up by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from blockd.storage.superblock import held_root, with_held_root
from tests.support import stamps
from tests.support.daemon import VG, Daemon, Place
from tests.support.pool_metadata import direct_read, direct_write, metadata
from tests.support.small_pool import events, expect_clean_metadata, pool, pool_on, take_down
from tests.support.thin_kernel import dmsetup, tell_pool

pytestmark = pytest.mark.kernel

MIB = 1024**2


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Place]:
    """A place with a small pool."""
    place = Place(state=tmp_path, run=tmp_path / "run")
    place.run.mkdir()
    with pool_on(place, place.disk):
        yield place


def root_held() -> int:
    """What the kernel says."""
    told = dmsetup("status", f"{VG}-pool-tpool").split()[6]
    return 0 if told == "-" else int(told)


@pytest.mark.parametrize("caught_in", ["reserving", "releasing"])
def test_power_cut_between_held_root_and_counts_loses_no_pool(small: Place, caught_in: str) -> None:
    with Daemon(small) as daemon:
        volume_id = daemon.api.create_volume("kept", 64 * MIB)
        device = daemon.api.device(volume_id)
        stamps.stamp(device, 1, 0, 16 * MIB)
        daemon.api.idle()
    tell_pool("reserve_metadata_snap")
    held = root_held()
    if caught_in == "reserving":  # what is left of it is a copy that nothing counts
        tell_pool("release_metadata_snap")
    take_down(small)
    with metadata(small) as (disk, offset):
        superblock = direct_read(disk, offset)
        assert held_root(superblock) == (0 if caught_in == "reserving" else held)
        caught = with_held_root(superblock, held if caught_in == "reserving" else 0)
        direct_write(disk, offset, caught)
    with pytest.raises(AssertionError, match="Manual repair required"):
        small.lvm("lvchange", "--activate", "y", f"{VG}/pool")
    if caught_in == "releasing":  # the power went once more, in the middle of this
        small.lvm("lvchange", "--yes", "--activate", "y", f"{VG}/pool_tmeta")

    with Daemon(small) as daemon:
        (told,) = events(daemon, "pool metadata as of their last commit")
        assert told["held_root"] == held_root(superblock)
        assert pool(daemon.api)["trouble"] is None
        assert root_held() == 0, "nobody reads it any more"
        stamps.expect(device, 1, 0, 16 * MIB)
        snapshot_id = daemon.api.snapshot("s", volume_id)
        stamps.expect(daemon.api.device(daemon.api.clone("c", snapshot_id)), 1, 0, 16 * MIB)
        daemon.api.idle()
    expect_clean_metadata(small)
