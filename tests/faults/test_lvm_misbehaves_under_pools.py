"""LVM misbehaves while a pool is made, and it can be had in the end.

As in `test_lvm_misbehaves_beside.py`. `make-pool` is a program of its own: what LVM does to it, it
says in one line, and the next one does not run LVM beside what the last one left.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.faults.misbehaving import expect_next, plans
from tests.support.daemon import Daemon, Place, PoolMaking
from tests.support.lvm_stand_in import LASTING, StandIn

pytestmark = [pytest.mark.kernel, pytest.mark.full]

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
