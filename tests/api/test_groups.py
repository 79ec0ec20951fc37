"""`/host/v1/groups/snapshots` over HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from blockd.domain.errors import StorageError
from tests.api.rig import V1, Rig

GROUPS = "/host/v1/groups/snapshots"


async def two_volumes(rig: Rig) -> list[str]:
    """One of each class."""
    made = [await rig.api.volume(**{"class": name}) for name in ("sbs", "bssd")]
    return [volume["id"] for volume in made]


async def test_group_answers_snapshots_that_are_available_and_for_how_long_volumes_stood_still(
    rig: Rig,
) -> None:
    ids = await two_volumes(rig)
    group = await rig.api.ok("POST", GROUPS, {"volume_ids": ids, "name": "night"})
    assert list(group) == ["id", "snapshots", "suspended_ms"]
    assert isinstance(group["suspended_ms"], int)
    told = [(one["name"], one["status"], one["parent_volume"]["id"]) for one in group["snapshots"]]
    assert told == [("night-1", "available", ids[0]), ("night-2", "available", ids[1])]
    for one in group["snapshots"]:
        seen = await rig.api.ok("GET", f"/host/v1/snapshots/{one['id']}")
        assert seen == one
        assert (seen["group_id"], seen["suspended_ms"]) == (group["id"], group["suspended_ms"])
    assert await rig.api.ok("GET", f"{GROUPS}/{group['id']}") == group
    listed = await rig.api.ok("GET", f"{V1}/snapshots?name=night-")
    assert listed["total_count"] == 2


async def test_snapshot_of_its_own_is_of_no_group(rig: Rig) -> None:
    made = await rig.api.snapshot((await rig.api.volume())["id"])
    seen = await rig.api.ok("GET", f"/host/v1/snapshots/{made['id']}")
    assert (seen["group_id"], seen["suspended_ms"]) == (None, None)


async def test_group_without_a_name_gets_one(rig: Rig) -> None:
    group = await rig.api.ok("POST", GROUPS, {"volume_ids": await two_volumes(rig)})
    base = f"grp-{group['id'][:8]}"
    assert [one["name"] for one in group["snapshots"]] == [f"{base}-1", f"{base}-2"]


@pytest.mark.parametrize(
    ("change", "argument", "reason"),
    [
        ({"volume_ids": None}, "volume_ids", "required"),
        ({"volume_ids": "x"}, "volume_ids", "format"),
        ({"volume_ids": []}, "volume_ids", "constraint"),
        ({"volume_ids": ["x"]}, "volume_ids", "format"),
        ({"volume_ids": ["11111111-1111-4111-8111-111111111111"] * 2}, "volume_ids", "constraint"),
        ({"name": ""}, "name", "constraint"),
        ({"name": "n" * 253}, "name", "constraint"),
    ],
)
async def test_malformed_group_is_refused(
    rig: Rig, change: dict[str, Any], argument: str, reason: str
) -> None:
    body = {"volume_ids": ["11111111-1111-4111-8111-111111111111"], **change}
    reply = await rig.api("POST", GROUPS, body)
    assert reply.status == 400
    (detail,) = reply.body["details"]
    assert (detail["argument_name"], detail["reason"]) == (argument, reason)


async def test_longest_name_is_one_with_its_number(rig: Rig) -> None:
    (volume_id, _) = await two_volumes(rig)
    body = {"volume_ids": [volume_id], "name": "n" * 252}
    (made,) = (await rig.api.ok("POST", GROUPS, body))["snapshots"]
    await rig.api.ok("PATCH", f"{V1}/snapshots/{made['id']}", {"name": made["name"]})


async def test_quiesce_that_is_no_word_is_refused(rig: Rig) -> None:
    body = {"volume_ids": await two_volumes(rig), "quiesce": "perhaps"}
    assert (await rig.api("POST", GROUPS, body)).status == 400


async def test_quiesce_required_without_a_guest_is_refused_and_nothing_taken(rig: Rig) -> None:
    body = {"volume_ids": await two_volumes(rig), "quiesce": "require"}
    reply = await rig.api("POST", GROUPS, body)
    assert reply.status in (400, 412)
    assert "quiesce" in str(reply.body)
    assert (await rig.api.ok("GET", f"{V1}/snapshots"))["total_count"] == 0


async def test_group_that_storage_refuses_answers_why_and_leaves_nothing(rig: Rig) -> None:
    ids = await two_volumes(rig)
    rig.drivers["bssd"].fail_next["snapshot"] = StorageError("the disk is on fire")
    # The second volume's fails; what was made of the first is in the way of another attempt, too.
    rig.drivers["sbs"].fail_next["still"] = StorageError("it still burns")
    reply = await rig.api("POST", GROUPS, {"volume_ids": ids}, headers={"Idempotency-Key": "k"})
    assert (reply.status, reply.body["type"]) == (412, "precondition_failed")
    assert "burns" in reply.body["help_message"] or "fire" in reply.body["help_message"]
    listed = await rig.api.ok("GET", f"{V1}/snapshots?include_deleted=true")
    assert listed["total_count"] == 0
    rig.drivers["bssd"].fail_next.clear()
    again = await rig.api("POST", GROUPS, {"volume_ids": ids}, headers={"Idempotency-Key": "k"})
    assert again.status == 200, "an error is not remembered"
    assert "Idempotent-Replayed" not in again.headers


async def test_the_same_request_again_gets_the_same_answer_and_takes_nothing(rig: Rig) -> None:
    body = {"volume_ids": await two_volumes(rig)}
    first = await rig.api("POST", GROUPS, body, headers={"Idempotency-Key": "k"})
    again = await rig.api("POST", GROUPS, body, headers={"Idempotency-Key": "k"})
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.raw == first.raw
    assert first.body["suspended_ms"] is not None
    assert (await rig.api.ok("GET", f"{V1}/snapshots"))["total_count"] == 2


async def test_the_same_request_meanwhile_is_told_what_was_begun(rig: Rig) -> None:
    body = {"volume_ids": await two_volumes(rig)}
    gate = rig.drivers["sbs"].gates["still"] = asyncio.Event()
    headers = {"Idempotency-Key": "k"}
    first = asyncio.create_task(rig.api("POST", GROUPS, body, headers=headers))
    async with asyncio.timeout(10):
        while not (await rig.api.ok("GET", f"{V1}/snapshots"))["total_count"]:
            await asyncio.sleep(0.005)
    meanwhile = await rig.api("POST", GROUPS, body, headers=headers)
    assert meanwhile.body["suspended_ms"] is None
    assert {one["status"] for one in meanwhile.body["snapshots"]} == {"creating"}
    gate.set()
    assert (await first).body["id"] == meanwhile.body["id"]


async def test_group_that_does_not_exist_is_a_404(rig: Rig) -> None:
    reply = await rig.api("GET", f"{GROUPS}/11111111-1111-4111-8111-111111111111")
    assert (reply.status, reply.body["resource"]) == (404, "group")
