"""Pools that are damaged, or seem so: named, and well again as docs/pool-trouble.md says."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blockd.storage.superblock import BLOCK_BYTES, with_held_root
from tests.support import stamps
from tests.support.client import Api, ApiError
from tests.support.daemon import VG, Daemon, Place
from tests.support.pool_metadata import direct_read, direct_write, metadata
from tests.support.small_pool import pool, pool_on, problems, take_down, until
from tests.support.thin_kernel import dmsetup

pytestmark = pytest.mark.kernel

MIB = 1024**2

#: Linux, drivers/md/dm-thin-metadata.c: THIN_METADATA_NEEDS_CHECK_FLAG.
NEEDS_CHECK = 1


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Place]:
    """A place whose volume group has room for its pool to grow: 256 MiB of 4 GiB."""
    place = Place(state=tmp_path, run=tmp_path / "run")
    place.run.mkdir()
    with pool_on(place, place.disk):
        yield place


def test_pool_that_needs_a_check_is_named_and_well_after_one(small: Place) -> None:
    device = stamped(small)
    take_down(small)
    with metadata(small) as (disk, offset):
        superblock = bytearray(direct_read(disk, offset))
        flags = struct.unpack_from("<I", superblock, 4)[0] | NEEDS_CHECK
        struct.pack_into("<I", superblock, 4, flags)
        direct_write(disk, offset, with_held_root(bytes(superblock), 0))  # its sum is right again
    small.lvm("lvchange", "-ay", "--config", 'global/thin_check_executable=""', f"{VG}/pool")
    expect_told(small, "needs_check", "takes no writes, its metadata need a check: repair it")
    with Daemon(small) as daemon:
        with device.open("rb"), pytest.raises(ApiError, match="before its pool is repaired"):
            repair(daemon.api)
        assert pool(daemon.api)["trouble"] == "needs_check"
        assert repair(daemon.api)["trouble"] is None
        until(device.exists)
        stamps.stamp(device, 1, 0, 16 * MIB)  # it takes writes
    expect_well(small, device)


def test_pool_with_damaged_metadata_stops_no_start_and_is_named(small: Place) -> None:
    device = stamped(small)
    take_down(small)
    with metadata(small) as (disk, offset):
        superblock = direct_read(disk, offset)
        # No zeroes: LVM and the kernel take those for a pool that is new, and format it.
        direct_write(disk, offset, bytes([0xFF]) * BLOCK_BYTES)
    expect_told(small, "inactive", "is not active (")
    with metadata(small) as (disk, offset):
        direct_write(disk, offset, superblock)
    small.lvm("lvchange", "--activate", "y", f"{VG}/pool")
    expect_well(small, device)


def test_pool_whose_metadata_disk_fails_is_named_and_well_when_it_is_back(tmp_path: Path) -> None:
    under = Path("/dev/mapper/under")
    place = Place(state=tmp_path, run=tmp_path / "run", more_disks=(under,))
    place.run.mkdir()
    sectors = int(Path("/sys/block/ubda/size").read_text())
    good, bad = f"0 {sectors} linear /dev/ubda 0", f"0 {sectors} error"
    subprocess.run(["/sbin/dmsetup", "create", "under", "--table", good], check=True)
    try:
        with pool_on(place, place.disk, under):
            with Daemon(place) as daemon:
                api = daemon.api
                volume_id = api.create_volume("kept", 64 * MIB)
                device = api.device(volume_id)
                stamps.stamp(device, 1, 0, 16 * MIB)
                api.idle()
                switch(bad)
                try:
                    with pytest.raises(OSError, match="Input/output error"):
                        stamps.stamp(device, 2, 32 * MIB, 48 * MIB)
                    until(lambda: pool(api)["trouble"] == "failed")
                    assert "was given up by the kernel, it takes no writes" in problems(api)
                    with pytest.raises(ApiError, match="quotas_exceeded"):
                        api.create_volume("refused", MIB)
                finally:
                    switch(good)
                assert repair(api)["trouble"] is None
                until(device.exists)
                stamps.expect(device, 1, 0, 16 * MIB)
                api.create_volume("made", MIB)
            expect_well(place, device)
    finally:
        subprocess.run(["/sbin/dmsetup", "remove", "under"], check=True)


def repair(api: Api) -> Any:
    """As `blockctl pool repair`."""
    return api.host("POST", "pools/sbs/repair", {})


def stamped(place: Place) -> Path:
    """A volume with flushed bytes, and no daemon."""
    with Daemon(place) as daemon:
        api = daemon.api
        device = api.device(api.create_volume("kept", 64 * MIB))
        stamps.stamp(device, 1, 0, 16 * MIB)
        api.idle()
    return device


def expect_told(place: Place, trouble: str, line: str) -> None:
    """A daemon starts, names it, and makes nothing new."""
    with Daemon(place) as daemon:
        assert pool(daemon.api)["trouble"] == trouble
        assert line in problems(daemon.api)
        assert f"docs/pool-trouble.md#{trouble.replace('_', '-')}" in problems(daemon.api)
        assert pool(daemon.api)["extension"]["works"] is False
        with pytest.raises(ApiError, match="quotas_exceeded"):
            daemon.api.create_volume("refused", MIB)


def expect_well(place: Place, device: Path) -> None:
    """Everything is there, and new things can be made."""
    with Daemon(place) as daemon:
        assert pool(daemon.api)["trouble"] is None
        stamps.expect(device, 1, 0, 16 * MIB)
        daemon.api.create_volume("well", MIB)
        daemon.api.idle()


def switch(table: str) -> None:
    """Another table under the volume group."""
    dmsetup("suspend", "--noflush", "--nolockfs", "under")
    dmsetup("load", "under", "--table", table)
    dmsetup("resume", "under")
