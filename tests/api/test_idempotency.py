"""A POST that is repeated under its key is done once, and answered as the first time."""

from __future__ import annotations

import asyncio
import json

import pytest

from blockd.domain.errors import NoRoom
from blockd.domain.units import MIB
from tests.api.rig import NOBODY, V1, Api, Rig

EMPTY = {"from_empty": {"size": MIB}}
HOST = "/host/v1"


def key(value: str) -> dict[str, str]:
    return {"Idempotency-Key": value}


async def test_same_key_and_body_answers_the_first_answer(api: Api, prefix: str) -> None:
    first = await api("POST", f"{prefix}/volumes", EMPTY, headers=key("k"))
    assert "Idempotent-Replayed" not in first.headers
    await api.settled(f"{prefix}/volumes/{first.body['id']}")
    again = await api("POST", f"{prefix}/volumes", EMPTY, headers=key("k"))
    assert (again.status, again.raw) == (200, first.raw)
    assert again.body["status"] == "creating"
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.headers["X-Request-Id"] != first.headers["X-Request-Id"]
    assert (await api.ok("GET", f"{prefix}/volumes"))["total_count"] == 1


async def test_other_body_is_409_already_exists(api: Api, prefix: str) -> None:
    await api.ok("POST", f"{prefix}/volumes", EMPTY, headers=key("k"))
    raw = json.dumps(EMPTY).encode() + b" "
    reply = await api("POST", f"{prefix}/volumes", raw=raw, headers=key("k"))
    assert reply.status == 409
    assert reply.body == {
        "type": "already_exists",
        "message": "resource already exists",
        "resource": "idempotency_key",
        "resource_id": "k",
        "help_message": reply.body["help_message"],
    }
    assert (await api.ok("GET", f"{prefix}/volumes"))["total_count"] == 1


async def test_no_key_means_twice(api: Api) -> None:
    for _ in range(2):
        await api.ok("POST", f"{V1}/volumes", EMPTY)
    assert (await api.ok("GET", f"{V1}/volumes"))["total_count"] == 2


async def test_other_key_or_route_is_another_request(api: Api) -> None:
    volume = await api.ok("POST", f"{V1}/volumes", EMPTY, headers=key("k"))
    other = await api.ok("POST", f"{V1}/volumes", EMPTY, headers=key("K"))
    assert other["id"] != volume["id"]
    await api.settled(f"{V1}/volumes/{volume['id']}")
    body = {"volume_id": volume["id"]}
    snapshot = await api("POST", f"{V1}/snapshots", body, headers=key("k"))
    assert snapshot.status == 200
    assert "Idempotent-Replayed" not in snapshot.headers


async def test_every_post_can_be_repeated(api: Api) -> None:
    volume = await api.volume()
    snapshot = await api.snapshot(volume["id"])
    of_volume = f"{HOST}/volumes/{volume['id']}"
    calls: list[tuple[str, object, str]] = [
        (f"{V1}/snapshots", {"volume_id": volume["id"]}, f"{V1}/snapshots"),
        (f"{of_volume}/revert", {"snapshot_id": snapshot["id"]}, f"{V1}/snapshots"),
    ]
    for path, body, counted in calls:
        first = await api("POST", path, body, headers=key("k"))
        assert first.status == 200, first
        await api.settled(f"{V1}/volumes/{volume['id']}")
        before = (await api.ok("GET", counted))["total_count"]
        again = await api("POST", path, body, headers=key("k"))
        assert (again.status, again.raw) == (200, first.raw)
        assert again.headers["Idempotent-Replayed"] == "true"
        assert (await api.ok("GET", counted))["total_count"] == before
    for kind, made in (("volumes", volume), ("snapshots", snapshot)):
        await api.ok("DELETE", f"{V1}/{kind}/{made['id']}")
        path = f"{HOST}/{kind}/{made['id']}/undelete"
        first = await api("POST", path, headers=key("k"))
        again = await api("POST", path, headers=key("k"))
        assert (first.status, again.status, again.raw) == (200, 200, first.raw)


async def test_two_at_once_make_one(rig: Rig) -> None:
    replies = await asyncio.gather(
        *(rig.api("POST", f"{V1}/volumes", EMPTY, headers=key("k")) for _ in range(8))
    )
    assert {reply.status for reply in replies} == {200}
    assert len({reply.raw for reply in replies}) == 1
    assert sum("Idempotent-Replayed" not in reply.headers for reply in replies) == 1
    assert (await rig.api.ok("GET", f"{V1}/volumes"))["total_count"] == 1


async def test_errors_are_not_remembered(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"volume_id": NOBODY}
    for _ in range(2):
        reply = await rig.api("POST", f"{V1}/snapshots", body, headers=key("k"))
        assert (reply.status, "Idempotent-Replayed" in reply.headers) == (404, False)

    async def full(*_: object) -> None:
        raise NoRoom("volume", 1, 1, "full")

    with monkeypatch.context() as patch:
        patch.setattr(type(rig.service.volumes), "create", full)
        assert (await rig.api("POST", f"{V1}/volumes", EMPTY, headers=key("r"))).status == 403
    assert (await rig.api("POST", f"{V1}/volumes", EMPTY, headers=key("r"))).status == 200


@pytest.mark.parametrize("value", ["", "x" * 256, "é", "a\tb"])
async def test_bad_key_is_400_and_nothing_is_made(api: Api, value: str) -> None:
    reply = await api("POST", f"{V1}/volumes", EMPTY, headers=key(value))
    assert reply.status == 400
    (detail,) = reply.body["details"]
    assert (detail["argument_name"], detail["reason"]) == ("Idempotency-Key", "format")
    assert (await api.ok("GET", f"{V1}/volumes"))["total_count"] == 0


async def test_longest_key_works(api: Api) -> None:
    for expected in (None, "true"):
        reply = await api("POST", f"{V1}/volumes", EMPTY, headers=key("~" * 255))
        assert reply.headers.get("Idempotent-Replayed") == expected


async def test_a_key_means_nothing_to_reads_and_patches(api: Api) -> None:
    volume = await api.volume()
    path = f"{V1}/volumes/{volume['id']}"
    for name in ("a", "b"):
        changed = await api.ok("PATCH", path, {"name": name}, headers=key("k"))
        assert changed["name"] == name
        assert (await api.ok("GET", path, headers=key("k")))["name"] == name
