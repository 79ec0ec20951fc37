"""LVM misbehaves while something else is being recovered from, and it comes about in the end.

A catalog that is lost, or older than its copy. As in `test_lvm_misbehaves_beside.py`; and whatever
LVM says, no catalog is begun anew beside the LVs of one that is lost.
"""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tests.faults.lvm_cases import noting
from tests.faults.misbehaving import after_reboot, expect_next, plans, start_badly
from tests.faults.scenarios import NEW, OLD, SIZE
from tests.support import stamps
from tests.support.client import Api
from tests.support.daemon import Daemon, Place
from tests.support.lvm_stand_in import LASTING, OF_ALL, StandIn
from tests.support.small_pool import until

pytestmark = [pytest.mark.kernel, pytest.mark.full]

#: LVM is asked for LVs, then for the one with the copy, which is not active.
LOOK = ["lvs", "lvchange"]


# a lost catalog


def fill(place: Place) -> tuple[str, str]:
    """A volume and its snapshot, and the newest change of the catalog is in the copy."""
    with Daemon(place) as daemon:
        api = daemon.api
        volume = api.create_volume("v", SIZE)
        stamps.stamp(api.device(volume), OLD)
        snapshot = api.snapshot("s", volume)
        stamps.stamp(api.device(volume), NEW)
        until_copied(api)
    return volume, snapshot


def until_copied(api: Api) -> None:
    """Nothing is under way, and the copy lacks nothing; that there was none is told."""
    api.idle("restored from its copy")
    until(lambda: not any(one["behind"] for one in api.host("GET", "health")["catalog_copies"]))


def lose(place: Place) -> None:
    """The host was off, and the catalog's files are gone."""
    after_reboot(place)
    for file in place.state.glob("catalog.sqlite*"):
        file.unlink()


def expect_all(place: Place, volume: str, snapshot: str) -> None:
    """The next daemon has all, and so has the one after it, which finds nothing to tell of."""
    with Daemon(place) as daemon:
        until_copied(daemon.api)
    with Daemon(place) as daemon:
        api = daemon.api
        assert [item["name"] for item in api.all("volumes")] == ["v"]
        stamps.expect(api.device(volume), NEW)
        clone = api.clone("look", snapshot)
        stamps.expect(api.device(clone), OLD)
        api.block("DELETE", f"volumes/{clone}")
        expect_next(daemon)
        until_copied(api)


@pytest.mark.parametrize("kind", ["thin", "thick"])
def test_start_without_a_catalog_has_all_back_in_the_end(
    kind: str, stand_in: StandIn, request: pytest.FixtureRequest
) -> None:
    place = request.getfixturevalue(f"{kind}_place")
    volume, snapshot = fill(place)
    lose(place)
    stand_in.plan({})
    with noting({}):
        assert not start_badly(place, stand_in, {}, until_copied)
        calls = stand_in.calls()
        assert calls[: len(LOOK)] == LOOK, calls
        expect_all(place, volume, snapshot)
    for plan in plans(LOOK):  # what comes then is a start like any other
        lose(place)
        with noting(plan):
            stand_in.plan(plan)
            said = start_badly(place, stand_in, plan, until_copied)
            assert not said or said.startswith("blockd."), said
            stand_in.plan({})
            expect_all(place, volume, snapshot)
            stand_in.expect_one_at_a_time()
        print(f"  {plan}: {said or 'done'}", flush=True)


def test_start_with_an_old_catalog_has_the_newest_one_in_the_end(
    thin_place: Place, stand_in: StandIn
) -> None:
    with Daemon(thin_place) as daemon:
        until_copied(daemon.api)
    old = thin_place.catalog.read_bytes()
    volume, snapshot = fill(thin_place)

    def go_back() -> None:
        """Somebody has brought back an old file."""
        lose(thin_place)
        thin_place.catalog.write_bytes(old)

    go_back()
    stand_in.plan({})
    with noting({}):
        assert not start_badly(thin_place, stand_in, {}, until_copied)
        calls = stand_in.calls()
        assert calls[0] == "lvchange", calls  # of the copy, which is compared
        expect_all(thin_place, volume, snapshot)
    for how in OF_ALL:
        go_back()
        plan = {1: how}
        with noting(plan):
            stand_in.plan(plan)
            said = start_badly(thin_place, stand_in, plan, until_copied)
            assert not said or said.startswith("blockd."), said
            stand_in.plan({})
            expect_all(thin_place, volume, snapshot)
            stand_in.expect_one_at_a_time()
        print(f"  {plan}: {said or 'done'}", flush=True)


def recover_badly(place: Place, stand_in: StandIn, how: str) -> tuple[int, str]:
    """`blockd recover-catalog`: how it ended, and the one line that it said."""
    argv = [sys.executable, "-m", "blockd", "recover-catalog", "--config", str(place.config)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as one:
        if how in LASTING:
            stand_in.await_hit()
            time.sleep(6)  # beyond its patience, whether it waits or leaves
            stand_in.release()
        told = "\n".join(one.communicate(timeout=60))
    own = [line for line in told.splitlines() if line.startswith(("blockd: ", "catalog "))]
    assert len(own) == 1, told
    return one.returncode, own[0]


def test_recover_catalog_can_be_had_in_the_end(thin_place: Place, stand_in: StandIn) -> None:
    volume, snapshot = fill(thin_place)
    for plan in ({}, *plans(LOOK)):
        lose(thin_place)
        with noting(plan):
            stand_in.plan(plan)
            status, said = recover_badly(thin_place, stand_in, *plan.values() or ("",))
            assert plan or status == 0, said
            assert plan or stand_in.calls() == LOOK, stand_in.calls()
            assert status == 0 or not thin_place.catalog.exists()
            stand_in.plan({})
            if status != 0:
                status, again = recover_badly(thin_place, stand_in, "")
                assert status == 0, again
            expect_all(thin_place, volume, snapshot)
            stand_in.expect_one_at_a_time()
        print(f"  {plan}: {said}", flush=True)
