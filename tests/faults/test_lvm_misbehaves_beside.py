"""LVM misbehaves in what runs it beside the verbs, and the daemon gets over it.

Pools and stores that are extended, the space for copies of the catalog, the doctor, backups; pool
repair and `make-pool` are in `test_lvm_misbehaves_under_pools.py`. As with the verbs
(`test_lvm_misbehaves.py`): when the trouble has ended, without a restart, what was to be done is
done or can be had, nothing is lost or left over, the next create and delete succeed, and LVM was
never run twice at once.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from uuid import uuid4

import pytest

from tests.faults.lvm_cases import Plan, noted, noting
from tests.faults.misbehaving import go_wrong, plans
from tests.faults.scenarios import MIB, NEW, OLD, SIZE, clear
from tests.support import stamps
from tests.support.client import Api
from tests.support.daemon import VG, Daemon, Place
from tests.support.examination import device_of, found
from tests.support.lvm_stand_in import OF_ALL, OF_REPORTS, StandIn
from tests.support.small_pool import pool, until
from tests.support.thin_kernel import dmsetup

pytestmark = [pytest.mark.kernel, pytest.mark.full]

PIECE = 4 * MIB


# pools and stores that grow


class Filling:
    """A volume that is written to until its pool is low, again and again."""

    def __init__(self, api: Api) -> None:
        self._api, self._end = api, 0
        self._device = api.device(api.create_volume("filled", 1536 * MIB))
        self._size_bytes = self._group_free_bytes = self._begin = 0

    def until_low(self) -> None:
        """So much that the pool is due to be extended."""
        before = pool(self._api)
        self._size_bytes, self._group_free_bytes = before["size"], before["group_free"]
        self._begin = self._end
        while self._is_well() and pool(self._api)["size"] == self._size_bytes:
            stamps.stamp(self._device, NEW, self._end, self._end + PIECE)
            self._end += PIECE

    def until_extended(self) -> None:
        """The pool is larger, and not low; what was written meanwhile is there."""
        until(lambda: pool(self._api)["size"] > self._size_bytes and self._is_well(), 90)
        # LVM's word on the group comes after the kernel's on the pool.
        until(lambda: pool(self._api)["group_free"] < self._group_free_bytes, 90)
        stamps.expect(self._device, NEW, self._begin, self._end)

    def expect_all(self) -> None:
        """All that was ever written is there."""
        stamps.expect(self._device, NEW, 0, self._end)

    def _is_well(self) -> bool:
        now = pool(self._api)
        return bool(now["used"] < 0.8 * now["size"])


def test_extension_of_a_thin_pool_comes_about_and_loses_nothing(
    small_place: Place, stand_in: StandIn
) -> None:
    with Daemon(small_place) as daemon:
        filling = Filling(daemon.api)

        @noted
        def case(plan: Plan) -> list[str]:
            return go_wrong(daemon, stand_in, plan, filling.until_low, filling.until_extended)

        for plan in plans(case({})):
            case(plan)
        filling.expect_all()
        clear(daemon.api)


def store_bytes(snapshot_id: str) -> int:
    """Of a thick snapshot: how large its store is."""
    told = dmsetup("status", device_of(f"blockd-{snapshot_id}"))
    return int(told.split()[3].partition("/")[2]) * 512


def test_growth_of_a_thick_store_comes_about_and_loses_no_snapshot(
    thick_place: Place, stand_in: StandIn
) -> None:
    with Daemon(thick_place) as daemon:
        api = daemon.api

        @noted
        def case(plan: Plan) -> list[str]:
            volume = api.create_volume("v", 64 * MIB)
            device = api.device(volume)
            stamps.stamp(device, OLD)
            snapshot = api.snapshot("s", volume)
            before = store_bytes(snapshot)
            assert before == 32 * MIB
            api.idle()
            calls = go_wrong(
                daemon,
                stand_in,
                plan,
                lambda: stamps.stamp(device, NEW, 0, 24 * MIB),  # it is low from 22.4 on
                lambda: until(lambda: store_bytes(snapshot) > before, 60),
            )
            stamps.expect(device, NEW, 0, 24 * MIB)
            stamps.expect(device, OLD, 24 * MIB)
            stamps.expect(api.device(api.clone("look", snapshot)), OLD)
            clear(api)
            return calls

        assert case({})[0] == "lvextend"
        for how in OF_ALL:
            case({1: how})
        for how in (*OF_ALL, *OF_REPORTS):  # what is read after it was refused
            case({1: "exit 5 before", 2: how})


# the space for copies of the catalog


def catalog_lv(place: Place) -> str:
    """Its name."""
    names = place.lvm("lvs", "--noheadings", "-o", "lv_name", VG).split()
    (name,) = [name for name in names if name.startswith("blockd-catalog-")]
    return name


def without_it(place: Place, name: str) -> None:
    """The LV is gone."""
    place.lvm("lvremove", "--yes", f"{VG}/{name}")


def with_a_small_one(place: Place, name: str) -> None:
    """The LV is as large as the first one is, too small for what the catalog holds by now."""
    without_it(place, name)
    tag = name.replace("blockd-catalog-", "blockd-catalog.")
    place.lvm("lvcreate", "--yes", "-Wn", "-L8m", "--addtag", tag, "-n", name, VG)


def pad(place: Place) -> None:
    """A copy of the catalog needs more than half of a first slot from now on."""
    with closing(sqlite3.connect(place.catalog)) as catalog, catalog:
        catalog.execute("INSERT INTO meta VALUES ('padding', hex(randomblob(2500000)))")


def until_copied(api: Api) -> None:
    """Its newest change is in the copy."""
    until(lambda: not any(one["behind"] for one in api.host("GET", "health")["catalog_copies"]), 90)


@pytest.mark.parametrize(
    ("change", "how"),
    [
        *((without_it, how) for how in (*OF_ALL, *OF_REPORTS)),
        *((with_a_small_one, how) for how in OF_ALL),  # one process, which reports nothing
    ],
)
def test_space_for_copies_of_the_catalog_is_had_in_the_end(
    thin_place: Place, stand_in: StandIn, change: Callable[[Place, str], None], how: str
) -> None:
    with Daemon(thin_place) as daemon:
        volume = daemon.api.create_volume("v", SIZE)
        stamps.stamp(daemon.api.device(volume), NEW)
        until_copied(daemon.api)
    name = catalog_lv(thin_place)
    if change is with_a_small_one:
        pad(thin_place)
    change(thin_place, name)
    stand_in.plan({})
    with noting({}), Daemon(thin_place) as daemon:
        until_copied(daemon.api)
        calls = stand_in.calls()
    own = ["lvchange", "lvs", "lvcreate"] if change is without_it else ["lvextend"]
    assert calls[-len(own) :] == own, calls
    for plan in plans(calls):
        (number, way), *_ = plan.items()
        if way != how or number <= len(calls) - len(own):
            continue
        change(thin_place, name)
        stand_in.plan(plan)
        with noting(plan), Daemon(thin_place) as daemon:
            go_wrong(daemon, stand_in, plan, None, lambda: until_copied(daemon.api))
            stamps.expect(daemon.api.device(volume), NEW)
            assert catalog_lv(thin_place) == name


# doctor and backups


def leave_active(place: Place, api: Api) -> None:
    """A snapshot's disk stays active, as after a crash."""
    (snapshot,) = api.all("snapshots")
    place.lvm("lvchange", "-ay", "-K", f"{VG}/blockd-{snapshot['id']}")


def leave_unknown(place: Place, api: Api) -> None:
    """There is a disk of ours that the catalog lacks."""
    (volume,) = api.all("volumes")
    tag = catalog_lv(place).replace("blockd-catalog-", "blockd.")
    place.lvm(
        *("lvcreate", "--yes", "-s", "-prw", "-ky", "-an", "--addtag", tag),
        *("-n", f"blockd-{uuid4()}", f"{VG}/blockd-{volume['id']}"),
    )


@pytest.mark.parametrize("kind", ["thin", "thick"])
def test_doctor_whose_look_fails_says_so_and_sees_a_healthy_host_in_the_end(
    kind: str, stand_in: StandIn, request: pytest.FixtureRequest
) -> None:
    with Daemon(request.getfixturevalue(f"{kind}_place")) as daemon:
        api = daemon.api
        volume = api.create_volume("v", SIZE)
        stamps.stamp(api.device(volume), NEW)
        api.snapshot("s", volume)
        api.idle()

        def look() -> None:
            assert set(found(api)) <= {"not-examined"}

        @noted
        def case(plan: Plan) -> list[str]:
            return go_wrong(daemon, stand_in, plan, look, lambda: until(lambda: not found(api)))

        calls = case({})
        assert calls == ["lvs", "vgs"] * 2, "one look of ours, and one to see that all is well"
        for plan in plans(calls[:2]):
            case(plan)
        stamps.expect(api.device(volume), NEW)
        clear(api)


@pytest.mark.parametrize("how", [*OF_ALL, *OF_REPORTS])
@pytest.mark.parametrize("ailing", [leave_active, leave_unknown])
def test_fix_of_the_doctors_can_be_had_in_the_end(
    thin_place: Place, stand_in: StandIn, ailing: Callable[[Place, Api], None], how: str
) -> None:
    with Daemon(thin_place) as daemon:
        api = daemon.api

        def fix() -> None:
            api.host("POST", "doctor/fix", {})

        @noted
        def case(plan: Plan) -> list[str]:
            volume = api.create_volume("v", SIZE)
            stamps.stamp(api.device(volume), OLD)
            api.snapshot("s", volume)
            api.idle()
            ailing(thin_place, api)
            # The first look notices that somebody changed the group, and what that has run is
            # over before the second.
            assert len(found(api)) == len(found(api)) == 1

            def well() -> None:
                if found(api):
                    fix()
                assert not found(api)

            calls = go_wrong(daemon, stand_in, plan, fix, well)
            for snapshot in api.all("snapshots"):
                # What is found is as large as its LV, and ends with what nobody has written.
                stamps.expect(api.device(api.clone("look", snapshot["id"])), OLD, 0, 8 * MIB)
            stamps.expect(api.device(volume), OLD)
            assert len(api.all("snapshots")) == (2 if ailing is leave_unknown else 1)
            clear(api)
            return calls

        calls = case({})
        print(f"{ailing.__name__}: {' '.join(calls)}", flush=True)
        looks = ["lvs", "vgs"] * 2
        assert calls[:4] == looks, calls
        fixing = [plan for plan in plans(calls[:-4]) if min(plan) > len(looks)]
        assert fixing  # the looks have a test of their own
        for plan in fixing:
            if how in plan.values():
                case(plan)


@pytest.mark.parametrize("kind", ["thin", "thick"])
def test_backup_can_be_had_in_the_end(
    kind: str, stand_in: StandIn, request: pytest.FixtureRequest
) -> None:
    with Daemon(request.getfixturevalue(f"{kind}_place")) as daemon:
        api = daemon.api
        volume = api.create_volume("v", SIZE)
        stamps.stamp(api.device(volume), NEW)
        api.idle()

        def back_up() -> None:
            (backup,) = api.host("POST", "backups", {})["backups"]
            assert len(backup["files"]) == (2 if kind == "thin" else 1)

        @noted
        def case(plan: Plan) -> list[str]:
            return go_wrong(daemon, stand_in, plan, back_up, back_up)

        calls = case({})
        assert calls == ["vgcfgbackup"] * 2, calls
        for plan in plans(calls[:1]):
            case(plan)
        stamps.expect(api.device(volume), NEW)
        clear(api)
