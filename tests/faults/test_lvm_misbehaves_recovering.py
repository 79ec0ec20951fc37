"""LVM misbehaves while something else is being recovered from, and it comes about in the end.

A lost catalog, a pool that a power cut caught while its metadata were held, one that is wedged by a
creation cut short, an LV that others rename. As in `test_lvm_misbehaves_beside.py`; and whatever
LVM says, no catalog is begun anew beside the LVs of one that is lost.
"""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from blockd.storage.superblock import with_held_root
from tests.faults.lvm_cases import Plan, noted, noting
from tests.faults.misbehaving import after_reboot, expect_next, go_wrong, plans, start_badly
from tests.faults.scenarios import MIB, NEW, OLD, SIZE, clear
from tests.kernel.test_held_root import root_held
from tests.support import stamps, thin_kernel
from tests.support.client import Api
from tests.support.daemon import VG, Daemon, Place
from tests.support.lvm_stand_in import LASTING, OF_ALL, OF_REPORTS, StandIn
from tests.support.pool_metadata import direct_read, direct_write, metadata
from tests.support.small_pool import pool, take_down, until

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


# pools


def catch_while_reserving(place: Place) -> None:
    """The pool is as a power cut leaves it that comes while its metadata are held."""
    thin_kernel.tell_pool("reserve_metadata_snap")
    held = root_held()
    thin_kernel.tell_pool("release_metadata_snap")
    take_down(place)
    with metadata(place) as (disk, offset):
        direct_write(disk, offset, with_held_root(direct_read(disk, offset), held))


@pytest.mark.parametrize("how", OF_ALL)
def test_pool_with_a_held_root_comes_up_in_the_end(
    small_place: Place, stand_in: StandIn, how: str
) -> None:
    def idle(api: Api) -> None:
        api.idle("pool")  # which may be told not to have come up

    with Daemon(small_place) as daemon:
        volume = daemon.api.create_volume("v", 64 * MIB)
        device = daemon.api.device(volume)
        stamps.stamp(device, NEW, 0, 16 * MIB)
        daemon.api.idle()
    catch_while_reserving(small_place)
    stand_in.plan({})
    with noting({}):
        assert not start_badly(small_place, stand_in, {})
        calls = stand_in.calls()
        print(f"start: {' '.join(calls)}", flush=True)
    # Others are of every start: the first that activates is refused, and from there on it is ours.
    own = range(calls.index("lvchange") + 1, len(calls) + 1)
    for plan in plans(calls):
        (number, way), *_ = plan.items()
        if way != how or number not in own:
            continue
        catch_while_reserving(small_place)
        with noting(plan):
            stand_in.plan(plan)
            said = start_badly(small_place, stand_in, plan, idle)
            assert not said or said.startswith("blockd."), said
            stand_in.plan({})
            with Daemon(small_place) as daemon:
                assert pool(daemon.api)["trouble"] is None
                stamps.expect(device, NEW, 0, 16 * MIB)
                expect_next(daemon)
            stand_in.expect_one_at_a_time()
        print(f"  {plan}: {said or 'done'}", flush=True)


def test_snapshot_over_a_wedge_is_there_in_the_end(thin_place: Place, stand_in: StandIn) -> None:
    with Daemon(thin_place) as daemon:
        api = daemon.api

        @noted
        def case(plan: Plan) -> list[str]:
            volume = api.create_volume("v", SIZE)
            stamps.stamp(api.device(volume), NEW)
            api.idle()
            origin = f"{VG}/blockd-{volume}"
            thin_place.lvm("lvcreate", "--yes", "-s", "-kn", "-an", "-n", "alien", origin)
            thin_kernel.cut_short(thin_place, "alien")

            def snapshot() -> None:
                api.block("POST", "snapshots", {"name": "s", "volume_id": volume})

            def made() -> bool:
                """It is there; one that is in error says why, and another one is made."""
                if not (found := api.all("snapshots")):
                    snapshot()
                elif found[0]["status"] == "error":
                    api.block("DELETE", f"snapshots/{found[0]['id']}")
                    api.idle("pool")
                return [item["status"] for item in api.all("snapshots")] == ["available"]

            calls = go_wrong(daemon, stand_in, plan, snapshot, lambda: until(made, 90))
            (found,) = api.all("snapshots")
            stamps.expect(api.device(api.clone("look", found["id"])), NEW)
            thin_place.lvm("lvremove", "--yes", f"{VG}/alien")
            clear(api)
            return calls

        calls = case({})
        print(f"wedge: {' '.join(calls)}", flush=True)
        for plan in plans(calls):
            case(plan)


# LVs of others' making


@pytest.mark.parametrize("how", [*OF_ALL, *OF_REPORTS])
def test_lv_that_others_rename_is_in_error_until_it_has_its_name_again(
    thin_place: Place, stand_in: StandIn, how: str
) -> None:
    with Daemon(thin_place) as daemon:
        api = daemon.api
        volume = api.create_volume("v", SIZE)
        stamps.stamp(api.device(volume), NEW)
        api.idle()

        def status() -> str:
            return str(api.host("GET", f"volumes/{volume}")["status"])

        def rename() -> None:
            thin_place.lvm("lvrename", VG, f"blockd-{volume}", "mine")

        def back() -> None:
            until(lambda: status() == "error", 90)
            thin_place.lvm("lvrename", VG, "mine", f"blockd-{volume}")
            until(lambda: status() == "available", 90)

        @noted
        def case(plan: Plan) -> list[str]:
            calls = go_wrong(daemon, stand_in, plan, rename, back)
            stamps.expect(api.device(volume), NEW)
            return calls

        calls = case({})
        print(f"rename: {' '.join(calls)}", flush=True)
        for plan in plans(calls[:2]):
            if how in plan.values():
                case(plan)
        clear(api)
