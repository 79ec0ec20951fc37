"""LVM misbehaves while a pool is repaired or made, and it can be had in the end.

As in `test_lvm_misbehaves_beside.py`. `make-pool` is a program of its own: what LVM does to it, it
says in one line, and the next one does not run LVM beside what the last one left.
"""

from __future__ import annotations

import re
import struct
from contextlib import suppress
from pathlib import Path

import pytest

from blockd.storage.superblock import with_held_root
from tests.faults.lvm_cases import Plan, noted, noting
from tests.faults.misbehaving import expect_next, go_wrong, plans
from tests.faults.scenarios import MIB, NEW
from tests.support import stamps
from tests.support.client import ApiError
from tests.support.daemon import VG, Daemon, Place, PoolMaking
from tests.support.lvm_stand_in import LASTING, OF_ALL, OF_REPORTS, StandIn
from tests.support.pool_metadata import direct_read, direct_write, metadata
from tests.support.small_pool import pool, take_down, until

pytestmark = [pytest.mark.kernel, pytest.mark.full]

#: Linux, drivers/md/dm-thin-metadata.c: THIN_METADATA_NEEDS_CHECK_FLAG.
NEEDS_CHECK = 1


# pool repair


def needing_a_check(place: Place) -> None:
    """The pool's metadata say so; no daemon runs."""
    take_down(place)
    with metadata(place) as (disk, offset):
        superblock = bytearray(direct_read(disk, offset))
        flags = struct.unpack_from("<I", superblock, 4)[0] | NEEDS_CHECK
        struct.pack_into("<I", superblock, 4, flags)
        direct_write(disk, offset, with_held_root(bytes(superblock), 0))
    place.lvm("lvchange", "-ay", "--config", 'global/thin_check_executable=""', f"{VG}/pool")


@pytest.mark.parametrize("how", [*OF_ALL, *OF_REPORTS])
def test_pool_is_repaired_in_the_end(small_place: Place, stand_in: StandIn, how: str) -> None:
    with Daemon(small_place) as daemon:
        volume = daemon.api.create_volume("v", 64 * MIB)
        device = daemon.api.device(volume)
        stamps.stamp(device, NEW, 0, 16 * MIB)
        daemon.api.idle()

    @noted
    def case(plan: Plan) -> list[str]:
        needing_a_check(small_place)
        with Daemon(small_place) as daemon:
            api = daemon.api

            def repair() -> None:
                api.host("POST", "pools/sbs/repair", {})

            def is_well() -> bool:
                if pool(api)["trouble"] is not None:
                    with suppress(ApiError):  # LVM is late, say: asked again
                        repair()
                return pool(api)["trouble"] is None and device.exists()

            def well() -> None:
                until(is_well, 90)
                # The one before the repair lacks what the pool could not give; it would be tried
                # again after a minute.
                api.host("POST", "backups", {})

            assert pool(api)["trouble"] == "needs_check"
            calls = go_wrong(daemon, stand_in, plan, repair, well)
            stamps.expect(device, NEW, 0, 16 * MIB)
            return calls

    calls = case({})
    print(f"repair: {' '.join(calls)}", flush=True)
    for plan in plans(calls[:-1]):
        if how in plan.values():
            case(plan)


# make-pool


@pytest.fixture
def bare_place(tmp_path: Path) -> Place:
    """A disk that holds nothing."""
    if not Path("/dev/ubdb").is_block_device():
        pytest.skip("no /dev/ubdb: run inside scripts/lab with two disks")
    place = Place(state=tmp_path, run=tmp_path / "run", trash_keep="0s", command_timeout="4s")
    place.run.mkdir()
    return place


@pytest.mark.parametrize("number", range(1, 5))
def test_pool_is_made_in_the_end(bare_place: Place, stand_in: StandIn, number: int) -> None:
    stand_in.plan({})
    with noting({}):
        bare_place.make_pool()
        calls = stand_in.calls()
        assert calls == ["lvs", "vgcreate", "vgs", "lvcreate"]
    with Daemon(bare_place) as daemon:  # writes the configuration that LVM has by hand
        daemon.api.idle()
    bare_place.remove_vg()
    for plan in plans(calls):
        if number not in plan:
            continue
        bare_place.catalog.unlink()
        with noting(plan):
            stand_in.plan(plan)
            said = make_badly(bare_place, stand_in, plan[number])
            assert re.fullmatch(r"(blockd: )?[^\n]+", said), said
            stand_in.plan({})
            bare_place.make_pool()
            with Daemon(bare_place) as daemon:
                expect_next(daemon)
            stand_in.expect_one_at_a_time()
        bare_place.remove_vg()
        print(f"  {plan}: {said}", flush=True)


def make_badly(place: Place, stand_in: StandIn, how: str) -> str:
    """What it said in the end. While LVM hangs, one that is begun beside it is refused."""
    making = PoolMaking(place)
    if how in LASTING:
        stand_in.await_hit()
        assert making.ended() == 2
        said = making.said
        assert "did not end within 4 s" in said
        again = PoolMaking(place)
        assert again.ended() == 2
        assert "an LVM command of an earlier blockd still runs" in again.said
        stand_in.release()
        return said
    assert making.ended() in (0, 2)
    return making.said
