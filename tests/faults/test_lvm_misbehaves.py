"""Every LVM process of every verb misbehaves in every way, and the daemon gets over it.

While a command hangs, reads are answered and health names it. When the trouble has ended, without a
restart: nothing is under way, every resource is whole or in error with a reason, catalog, volume
group and fronts agree, the bytes are right, the next create and delete succeed, and LVM was never
run twice at once.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import Any

import pytest

from tests.faults.lvm_cases import Plan, noting
from tests.faults.misbehaving import (
    Request,
    after_reboot,
    logged,
    plans,
    start_badly,
    until_at_rest,
    watch_trouble,
)
from tests.faults.scenarios import NEW, OLD, SCENARIOS, SIZE, EraseSnapshot, Facts, Scenario, clear
from tests.support import stamps
from tests.support.agreement import expect_agreement
from tests.support.client import Api, ApiError
from tests.support.daemon import Daemon, Place
from tests.support.lvm_stand_in import LASTING, OF_ALL, StandIn

pytestmark = pytest.mark.kernel

#: Those that run LVM while the daemon runs. Undelete does so after a reboot alone.
THIN_VERBS = (
    "create",
    "clone",
    "snapshot",
    "group",
    "resize",
    "revert",
    "revert without keeping",
    "erase",
    "erase snapshot",
    "export",
    "import",
)
#: The volume's erasure runs none: its snapshot needs its disk, which goes with the last of them.
THICK_VERBS = (*THIN_VERBS[:7], "erase snapshot", "erase last snapshot")


class EraseLastSnapshot(EraseSnapshot):
    """Of a volume that is erased: thick, the disk goes that was kept for it."""

    name = "erase last snapshot"

    def prepare(self, api: Api) -> Facts:
        facts = super().prepare(api)
        api.block("DELETE", f"volumes/{facts['volume']}")
        api.idle()
        return facts

    def check(self, api: Api, facts: Facts, answered: bool) -> None:
        if any(item["id"] == facts["snapshot"] for item in api.all("snapshots")):
            assert not answered
            self._expect_snapshot(api, facts["snapshot"], OLD)


def expect_outcome(api: Api, scenario: Scenario, facts: Facts) -> str:
    """What the API says came of it, which must be true; one word for the report."""
    said = "done"
    for kind in ("volumes", "snapshots"):
        for item in api.all(kind):
            seen = api.host("GET", f"{kind}/{item['id']}")
            assert seen["status"] in ("available", "error"), seen
            if seen["status"] == "error" or seen["error"]:
                said = f"{seen['status']}: {seen['error']}"
                assert seen["error"], seen
                assert seen["error"].isprintable(), seen
            if seen["status"] == "error":
                api.block("DELETE", f"{kind}/{item['id']}")
    until_at_rest(api)
    failed = [job for job in jobs(api, facts) if job["state"] == "failed"]
    for job in failed:
        said = f"failed: {job['error']}"
        assert job["error"].isprintable(), job
    if failed and scenario.name == "export":
        scenario._whole(api, facts)
    else:
        scenario.check(api, facts, answered=False)
    return said


def jobs(api: Api, facts: Facts) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.host("GET", f"jobs?snapshot_id={facts['snapshot']}")["jobs"]
    return found


def unharmed(place: Place, api: Api, stand_in: StandIn, scenario: Scenario) -> list[str]:
    """The LVM processes of the verb when nothing is wrong."""
    facts = scenario.prepare(api)
    api.idle()
    stand_in.plan({})
    scenario.request(api, facts)
    until_at_rest(api)
    calls = stand_in.calls()
    scenario.check(api, facts, answered=True)
    clear(api)
    expect_agreement(place)
    return calls


def go_wrong(place: Place, api: Api, stand_in: StandIn, scenario: Scenario, plan: Plan) -> None:
    """One case."""
    facts = scenario.prepare(api)
    api.idle()
    stand_in.plan(plan)
    began = time.monotonic()
    request = Request(lambda: scenario.request(api, facts))
    try:
        for number, how in plan.items():
            if how in LASTING:
                stand_in.await_hit()
                watch_trouble(api, stand_in, stand_in.calls()[number - 1], how)
    finally:
        request.answered()
    until_at_rest(api)
    took_s, calls = time.monotonic() - began, stand_in.calls()
    assert len(calls) >= max(plan), (plan, calls)
    stand_in.plan({})
    said = request.refusal or expect_outcome(api, scenario, facts)
    until_at_rest(api)
    expect_agreement(place)
    made = api.create_volume("next", SIZE)
    api.block("DELETE", f"volumes/{made}")
    clear(api)
    expect_agreement(place)
    stand_in.expect_one_at_a_time()
    print(f"  {plan}: {took_s:.1f} s, {' '.join(calls)}: {said}", flush=True)


def misbehave(place: Place, stand_in: StandIn, verb: str) -> None:
    """All cases of one verb."""
    scenario = (SCENARIOS | {EraseLastSnapshot.name: EraseLastSnapshot})[verb]()
    with Daemon(place) as daemon:
        until_at_rest(daemon.api)
        clear(daemon.api)
        with noting({}):
            calls = unharmed(place, daemon.api, stand_in, scenario)
        print(f"{verb}: {' '.join(calls)}", flush=True)
        assert calls, "it runs no LVM"
        for plan in plans(calls):
            with noting(plan), logged(daemon, f"{verb} {plan}"):
                go_wrong(place, daemon.api, stand_in, scenario, plan)


def start_with_misbehaving_lvm(place: Place, stand_in: StandIn) -> None:
    """All cases of a start, as after a reboot."""
    with Daemon(place) as daemon:
        until_at_rest(daemon.api)
        clear(daemon.api)
        facts = SCENARIOS["create"]().prepare(daemon.api)
        daemon.api.idle()
    after_reboot(place)
    stand_in.plan({})
    with noting({}), Daemon(place) as daemon:
        until_at_rest(daemon.api)
    calls = stand_in.calls()
    print(f"start: {' '.join(calls)}", flush=True)
    for plan in plans(calls):
        after_reboot(place)
        with noting(plan):
            stand_in.plan(plan)
            said = start_badly(place, stand_in, plan)
            assert not said or said.startswith("blockd."), said  # an error of ours, with its reason
            stand_in.plan({})
            with Daemon(place) as daemon:
                until_at_rest(daemon.api)
                expect_agreement(place)
                stamps.expect(daemon.api.device(facts["volume"]), NEW)
            stand_in.expect_one_at_a_time()
        print(f"  {plan}: {said or 'done'}", flush=True)
    with Daemon(place) as daemon:
        clear(daemon.api)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["thin", "thick"])
def test_each_lvm_process_of_a_start_misbehaves_and_the_next_start_is_well(
    kind: str, stand_in: StandIn, request: pytest.FixtureRequest
) -> None:
    place = request.getfixturevalue(f"{kind}_place")
    start_with_misbehaving_lvm(dataclasses.replace(place, names_devices=False), stand_in)


@pytest.mark.full
@pytest.mark.parametrize("how", OF_ALL)
def test_undelete_after_a_reboot_with_a_misbehaving_lvm_can_be_had_in_the_end(
    thin_place: Place, stand_in: StandIn, how: str
) -> None:
    place = dataclasses.replace(thin_place, trash_keep="24h")
    with Daemon(place) as daemon:
        volume_id = daemon.api.create_volume("v", SIZE)
        stamps.stamp(daemon.api.device(volume_id), NEW)
        daemon.api.block("DELETE", f"volumes/{volume_id}")
    after_reboot(place)
    stand_in.plan({})
    with noting({1: how}), Daemon(place) as daemon:
        api = daemon.api
        stand_in.plan({1: how})
        undeleting = threading.Thread(target=undelete_or_not, args=(api, volume_id))
        undeleting.start()
        if how in LASTING:
            stand_in.await_hit()
            watch_trouble(api, stand_in, "lvchange", how)
        undeleting.join(60)
        assert not undeleting.is_alive()
        until_at_rest(api)
        stand_in.plan({})
        undelete_or_not(api, volume_id)
        stamps.expect(api.device(volume_id), NEW)
        expect_agreement(place)
        stand_in.expect_one_at_a_time()
        api.block("DELETE", f"volumes/{volume_id}")


def undelete_or_not(api: Api, volume_id: str) -> None:
    """Refused it may be, with a reason."""
    try:
        api.host("POST", f"volumes/{volume_id}/undelete")
    except ApiError as error:
        if error.status != 412:
            raise


@pytest.mark.full
@pytest.mark.parametrize("verb", THIN_VERBS)
def test_each_lvm_process_of_a_thin_verb_misbehaves_and_all_is_well_in_the_end(
    thin_place: Place, stand_in: StandIn, verb: str
) -> None:
    misbehave(thin_place, stand_in, verb)


@pytest.mark.full
@pytest.mark.parametrize("verb", THICK_VERBS)
def test_each_lvm_process_of_a_thick_verb_misbehaves_and_all_is_well_in_the_end(
    thick_place: Place, stand_in: StandIn, verb: str
) -> None:
    misbehave(thick_place, stand_in, verb)
