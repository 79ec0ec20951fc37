"""The guard over real pools: extended in time, filled to the brim, in trouble, and back."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from blockd.domain.effects import SideEffects
from blockd.storage.dm import DeviceMapper, open_device_mapper
from tests.support import stamps
from tests.support.agreement import expect_agreement
from tests.support.client import Api, ApiError
from tests.support.daemon import VG, Daemon, Place
from tests.support.small_pool import (
    POOL_BYTES,
    events,
    expect_clean_metadata,
    pool,
    pool_on,
    problems,
    until,
)

pytestmark = pytest.mark.kernel

MIB = 1024**2
CHUNK = 65536
NO_EXTENSION = "extend_percent = 0\nmetadata_extend_percent = 0"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Place]:
    """A place whose volume group has room for its pool to grow: 256 MiB of 4 GiB."""
    place = Place(state=tmp_path, run=tmp_path / "run")
    place.run.mkdir()
    with pool_on(place, place.disk):
        yield place


def write(device: Path, start: int, end: int, generation: int = 1) -> None:
    """Stamp a range; flushed when this returns."""
    stamps.stamp(device, generation, start, end)


def metrics(place: Place) -> str:
    """The daemon's page."""
    argv = ["curl", "-s", "--unix-socket", str(place.run / "blockd.sock"), "http://x/metrics"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def extensions(place: Place) -> int:
    """How many times the daemon has run lvextend."""
    (line,) = [
        ln for ln in metrics(place).splitlines() if 'processes_total{command="lvextend"' in ln
    ]
    return int(float(line.rpartition(" ")[2]))


def group_free(place: Place) -> int:
    """What LVM says the volume group has left."""
    told = place.lvm("vgs", "--noheadings", "--units", "b", "--nosuffix", "-o", "vg_free", VG)
    return int(told)


# low water


def test_low_pool_is_extended_before_anybody_notices(small: Place) -> None:
    with Daemon(small) as daemon:
        api = daemon.api
        volume_id = api.create_volume("grows", 1024 * MIB)
        before = pool(api)
        assert before["extension"] == {"works": True, "reason": None}
        assert before["when_full"] == "queue"
        for part in range(8):  # 512 MiB into a pool of 256
            write(api.device(volume_id), part * 64 * MIB, (part + 1) * 64 * MIB)
            until(lambda: pool(api)["used"] < 0.8 * pool(api)["size"])
        # LVM's word on the group comes after the kernel's on the pool.
        until(lambda: pool(api)["group_free"] == group_free(small))
        after = pool(api)
        assert after["size"] > 512 * MIB
        assert (after["mode"], after["trouble"]) == ("rw", None)
        done = len(events(daemon, "pool extended"))
        assert extensions(small) == done >= 1
        assert f'blockd_pool_extensions_total{{outcome="done",storage_class="sbs"}} {done}.0' in (
            metrics(small)
        )
        stamps.expect(api.device(volume_id), 1, 0, 512 * MIB)
        api.idle()
        expect_agreement(small)
    print(f"pool extended {done} times while 512 MiB were written, by one lvextend each")


def test_low_metadata_are_extended(small: Place) -> None:
    with Daemon(small) as daemon:
        api = daemon.api
        before = pool(api)["metadata_size"]
        with scattering(api) as scatter:
            while (now := pool(api))["metadata_used"] < 0.7 * now["metadata_size"]:
                scatter()
            # In metadata of 4 MiB the rest would be gone before LVM has started.
            until(lambda: pool(api)["metadata_size"] > before)
            scatter()
        after = pool(api)
        assert (after["mode"], after["metadata_size"]) == ("rw", 8 * MIB)
        api.idle()
    expect_clean_metadata(small)


def test_pool_in_a_full_group_says_so_and_grows_when_there_is_room(small: Place) -> None:
    with Daemon(small) as daemon:
        api = daemon.api
        volume_id = api.create_volume("waits", 256 * MIB)
        small.lvm("lvcreate", "-l", "100%FREE", "-n", "foreign", VG)
        write(api.device(volume_id), 0, 220 * MIB)
        until(lambda: "above its low-water mark and cannot be extended" in problems(api))
        assert pool(api)["size"] == POOL_BYTES
        assert pool(api)["extension"]["works"] is False
        small.lvm("lvremove", "-y", f"{VG}/foreign")
        took_s = until(lambda: pool(api)["size"] > POOL_BYTES, 60)
        api.idle()
    print(f"room that was made by hand was used after {took_s:.1f} s")


def test_ceiling_of_the_configuration_is_kept_and_named(small: Place) -> None:
    small = dataclasses.replace(small, class_options='extend_to = "272MiB"')
    with Daemon(small) as daemon:
        api = daemon.api
        volume_id = api.create_volume("bounded", 512 * MIB)
        write(api.device(volume_id), 0, 230 * MIB)
        until(lambda: "extend_to is reached: 272 MiB" in problems(api))
        assert pool(api)["size"] == 272 * MIB
        until(lambda: events(daemon, "pool extended"))
        assert len(events(daemon, "pool extended")) == 1


# to the brim


@pytest.mark.parametrize("when_full", ["error", "queue"])
def test_eight_writers_fill_a_pool_and_lose_nothing_that_was_flushed(
    small: Place, when_full: str
) -> None:
    if when_full == "error":
        small.lvm("lvchange", "--errorwhenfull", "y", f"{VG}/pool")
    small = dataclasses.replace(small, class_options=NO_EXTENSION)
    with Daemon(small) as daemon:
        api = daemon.api
        ids = [api.create_volume(f"w{number}", 64 * MIB) for number in range(8)]
        writers = [Writer(api.device(id_)) for id_ in ids]
        until(lambda: pool(api)["trouble"] == "out_of_data_space", 60)
        assert pool(api)["when_full"] == when_full
        until(lambda: events(daemon, "pool in trouble"))
        assert 'trouble="out_of_data_space"} 1.0' in metrics(small)
        assert "is full: writes" in problems(api)
        assert "extend_percent is 0" in problems(api)
        with pytest.raises(ApiError, match="quotas_exceeded"):
            api.create_volume("no room", MIB)
        if when_full == "error":
            failed = [writer for writer in writers if writer.ended() is not None]
            assert failed
        else:
            assert all(writer.thread.is_alive() for writer in writers)
        # By hand; the guard adds nothing.
        small.lvm("lvextend", "--size", "+512m", f"{VG}/pool")
        took_s = until(lambda: pool(api)["trouble"] is None)
        until(lambda: events(daemon, "pool has recovered"))
        if when_full == "error":
            writers += [Writer(api.device(id_)) for id_ in ids]  # again, from the beginning
        for writer in writers[-8:]:
            assert writer.ended(60) is None
        for writer in writers:
            writer.expect_what_was_flushed()
        api.create_volume("room again", MIB)
        api.idle()
        expect_agreement(small)
    expect_clean_metadata(small)
    flushed = sum(writer.flushed_bytes for writer in writers)
    print(
        f"{when_full}: {flushed / MIB:.0f} MiB flushed by 8 writers are there, thin_check clean, "
        f"back to rw {took_s:.2f} s after lvextend"
    )


def test_full_pool_recovers_by_erasing_its_trash(small: Place) -> None:
    small.lvm("lvchange", "--errorwhenfull", "y", f"{VG}/pool")
    small = dataclasses.replace(small, class_options=NO_EXTENSION)
    with Daemon(small) as daemon:
        api = daemon.api
        old, new = (api.create_volume(name, 256 * MIB) for name in ("old", "new"))
        write(api.device(old), 0, 128 * MIB)
        api.block("DELETE", f"volumes/{old}")
        writer = Writer(api.device(new), 200 * MIB)
        writer.ended(60)
        until(lambda: not api.all("volumes", "&include_deleted=true&name=old"))
        until(lambda: pool(api)["trouble"] is None)
        write(api.device(new), 0, 200 * MIB)
        api.idle()
        expect_agreement(small)


def test_pool_without_metadata_takes_no_writes_until_it_has_some(small: Place) -> None:
    small = dataclasses.replace(small, class_options=NO_EXTENSION)
    with Daemon(small) as daemon:
        api = daemon.api
        with scattering(api) as scatter:
            with pytest.raises(OSError, match="Input/output error"):
                for_ever(scatter)
            until(lambda: pool(api)["trouble"] == "out_of_metadata_space")
            assert "no metadata are left" in problems(api)
            with pytest.raises(ApiError, match="quotas_exceeded") as refused:
                api.create_volume("no metadata", MIB)
            assert "docs/pool-trouble.md#out-of-metadata-space" in str(refused.value)
            small.lvm("lvextend", "--poolmetadatasize", "+4m", f"{VG}/pool")
            until(lambda: pool(api)["trouble"] is None)
            scatter()
        api.create_volume("metadata again", MIB)
        api.idle()
    expect_clean_metadata(small)


def for_ever(act: Callable[[], None]) -> None:
    """Until it fails."""
    while True:
        act()


class Writer:
    """A thread that stamps a device from its beginning and flushes after each chunk."""

    def __init__(self, device: Path, size_bytes: int = 64 * MIB) -> None:
        self.device, self.size_bytes, self.flushed_bytes = device, size_bytes, 0
        self._error: OSError | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        descriptor = os.open(self.device, os.O_RDWR | os.O_CLOEXEC | os.O_DIRECT)
        target = stamps.Stamps(descriptor, self.size_bytes)
        try:
            while self.flushed_bytes < self.size_bytes:
                end = self.flushed_bytes + 4 * CHUNK
                target.write(1, self.flushed_bytes, end)
                os.fdatasync(descriptor)
                self.flushed_bytes = end
        except OSError as err:
            self._error = err
        finally:
            target.close()
            os.close(descriptor)

    def ended(self, timeout_s: float = 10) -> OSError | None:
        """Wait for its end; the error that ended it, if one did."""
        self.thread.join(timeout_s)
        assert not self.thread.is_alive()
        return self._error

    def expect_what_was_flushed(self) -> None:
        """Read it back, past every cache."""
        if self.flushed_bytes:
            stamps.expect(self.device, 1, 0, self.flushed_bytes)


@contextmanager
def scattering(api: Api) -> Iterator[Callable[[], None]]:
    """Using up metadata without data: snapshots that diverge in every leaf of the mapping."""
    leaf = 504 * CHUNK  # two leaves, at most, of a B-tree of mappings
    size = 4 * leaf
    volume_id = api.create_volume("scattered", size)
    device = api.device(volume_id)
    write(device, 0, size)
    with open_device_mapper(SideEffects()) as mapper:
        lower, tpool, thin_id = below(mapper, volume_id)
        numbers = iter(range(100_000, 200_000))
        descriptor = os.open(device, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        target = stamps.Stamps(descriptor, size)

        def scatter() -> None:
            number = next(numbers)
            mapper.suspend(lower, freeze=False)
            try:
                mapper.message(tpool, f"create_snap {number} {thin_id}")
            finally:
                mapper.resume(lower)
            for start in range(0, size, leaf // 4):
                target.write(number, start, start + 4096)
            os.fsync(descriptor)

        try:
            yield scatter
        finally:
            target.close()
            os.close(descriptor)
            for number in range(100_000, next(numbers)):
                mapper.message(tpool, f"delete {number}")


def below(mapper: DeviceMapper, volume_id: str) -> tuple[str, str, int]:
    """The uuids of a volume's LV and of its pool, and its number in the pool."""
    (front,) = mapper.devices(f"blockd-{volume_id}")
    lower = mapper.info_of_number(mapper.table(front.uuid)[0].params.split()[0])
    assert lower
    pool_number, thin_id = mapper.table(lower.uuid)[0].params.split()
    tpool = mapper.info_of_number(pool_number)
    assert tpool
    return lower.uuid, tpool.uuid, int(thin_id)
