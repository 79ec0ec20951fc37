"""Every documented error, with its exact fields, on every route that can answer it."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import Any

import pytest

from blockd.domain.errors import NoRoom, RollbackFailed, StorageError, WrongState
from blockd.domain.units import GIB, MIB
from tests.api.rig import NOBODY, PROJECT, V1, Api, Rig

OBJECTS = [("GET", {}), ("PATCH", {"name": "n"}), ("DELETE", None)]
HOST = "/host/v1"
HOST_VERBS = [
    ("GET", f"{HOST}/volumes/{{id}}", None),
    ("GET", f"{HOST}/volumes/{{id}}/device", None),
    ("POST", f"{HOST}/volumes/{{id}}/revert", {"snapshot_id": NOBODY}),
    ("POST", f"{HOST}/volumes/{{id}}/undelete", {}),
    ("GET", f"{HOST}/snapshots/{{id}}", None),
    ("POST", f"{HOST}/snapshots/{{id}}/undelete", {}),
]


def not_found(resource: str, resource_id: str) -> dict[str, Any]:
    return {
        "type": "not_found",
        "message": "resource is not found",
        "resource": resource,
        "resource_id": resource_id,
    }


def invalid(*details: tuple[str, str, str]) -> dict[str, Any]:
    return {
        "type": "invalid_arguments",
        "message": "invalid argument(s)",
        "details": [
            {"argument_name": name, "reason": reason, "help_message": text}
            for name, reason, text in details
        ],
    }


def precondition(name: str, help_message: str) -> dict[str, Any]:
    return {
        "type": "precondition_failed",
        "message": "precondition is not respected",
        "precondition": name,
        "help_message": help_message,
    }


@pytest.mark.parametrize(("method", "body"), OBJECTS)
@pytest.mark.parametrize("kind", ["volume", "snapshot"])
async def test_unknown_id_is_404_with_the_resource(
    api: Api, prefix: str, method: str, body: object, kind: str
) -> None:
    reply = await api(method, f"{prefix}/{kind}s/{NOBODY}", body)
    assert (reply.status, reply.body) == (404, not_found(kind, NOBODY))


@pytest.mark.parametrize(("method", "body"), OBJECTS)
@pytest.mark.parametrize("kind", ["volume", "snapshot"])
@pytest.mark.parametrize(
    "bad", ["x", "1", NOBODY[:-1], NOBODY + "0", NOBODY.replace("-", ""), "%00"]
)
async def test_malformed_id_is_400_on_the_id(
    api: Api, prefix: str, method: str, body: object, kind: str, bad: str
) -> None:
    reply = await api(method, f"{prefix}/{kind}s/{bad}", body)
    fault = invalid((f"{kind}_id", "format", "value must be a valid UUID"))
    assert (reply.status, reply.body) == (400, fault)


@pytest.mark.parametrize(("method", "path", "body"), HOST_VERBS)
async def test_host_verb_on_unknown_or_malformed_id(
    api: Api, method: str, path: str, body: object
) -> None:
    kind = "volume" if "volumes" in path else "snapshot"
    reply = await api(method, path.format(id=NOBODY), body)
    assert (reply.status, reply.body) == (404, not_found(kind, NOBODY))
    reply = await api(method, path.format(id="nope"), body)
    fault = invalid((f"{kind}_id", "format", "value must be a valid UUID"))
    assert (reply.status, reply.body) == (400, fault)


@pytest.mark.parametrize(
    ("method", "rest", "body"),
    [
        ("GET", "volume-types", None),
        ("GET", "volumes", None),
        ("POST", "volumes", {}),
        ("GET", "snapshots", None),
        ("POST", "snapshots", {}),
        *[
            (method, f"{kind}s/{NOBODY}", body)
            for method, body in OBJECTS
            for kind in ("volume", "snapshot")
        ],
    ],
)
@pytest.mark.parametrize("version", ["v1", "v1alpha1"])
@pytest.mark.parametrize("zone", ["fr-par-1", "xx-lab-11", "xx-lab", "XX-LAB-1"])
async def test_another_zone_is_404_on_every_route(
    api: Api, version: str, method: str, rest: str, body: object, zone: str
) -> None:
    reply = await api(method, f"/block/{version}/zones/{zone}/{rest}", body)
    assert (reply.status, reply.body) == (404, not_found("zone", zone))


async def test_deleted_is_404_for_reads_changes_and_a_second_delete(api: Api, prefix: str) -> None:
    volume = await api.volume()
    snapshot = await api.snapshot(volume["id"])
    for kind, made in (("volume", volume), ("snapshot", snapshot)):
        path = f"{prefix}/{kind}s/{made['id']}"
        assert (await api("DELETE", path)).status == 204
        for method, body in OBJECTS:
            reply = await api(method, path, body)
            assert (reply.status, reply.body) == (404, not_found(kind, made["id"])), method


async def test_snapshot_of_unknown_volume_is_404(api: Api, prefix: str) -> None:
    reply = await api("POST", f"{prefix}/snapshots", {"volume_id": NOBODY})
    assert (reply.status, reply.body) == (404, not_found("volume", NOBODY))


async def test_volume_from_unknown_snapshot_is_404(api: Api, prefix: str) -> None:
    body = {"from_snapshot": {"snapshot_id": NOBODY, "size": 0}}
    reply = await api("POST", f"{prefix}/volumes", body)
    assert (reply.status, reply.body) == (404, not_found("snapshot", NOBODY))


async def test_clone_smaller_than_its_snapshot_is_412_with_both_sizes(
    api: Api, prefix: str
) -> None:
    volume = await api.volume(from_empty={"size": 2 * MIB})
    snapshot = await api.snapshot(volume["id"])
    body = {"from_snapshot": {"snapshot_id": snapshot["id"], "size": MIB}}
    reply = await api("POST", f"{prefix}/volumes", body)
    help_message = (
        "size, when provided, must be equal to or larger than the size of the source snapshot. "
        f"Here the requested volume size is '{MIB}' whereas snapshot size is '{2 * MIB}'"
    )
    assert (reply.status, reply.body) == (412, precondition("resource_not_usable", help_message))


async def test_delete_of_an_open_volume_is_412_still_in_use(rig: Rig, prefix: str) -> None:
    api, volume = rig.api, await rig.api.volume()
    path = f"{prefix}/volumes/{volume['id']}"
    device = await api.ok("GET", f"{HOST}/volumes/{volume['id']}/device")
    descriptor = os.open(device["path"], os.O_RDONLY)
    try:
        assert (await api.ok("GET", path))["status"] == "in_use"
        reply = await api("DELETE", path)
        assert reply.status == 412
        assert reply.body == precondition("resource_still_in_use", reply.body["help_message"])
        assert volume["id"] in reply.body["help_message"]
        snapshot = await api.snapshot(volume["id"])
        revert = f"{HOST}/volumes/{volume['id']}/revert"
        reply = await api("POST", revert, {"snapshot_id": snapshot["id"]})
        assert (reply.status, reply.body["precondition"]) == (412, "resource_still_in_use")
    finally:
        os.close(descriptor)
    assert (await api("DELETE", path)).status == 204


async def test_change_of_what_is_creating_is_the_documented_error(rig: Rig, prefix: str) -> None:
    api = rig.api
    rig.driver.gates["create"] = gate = asyncio.Event()
    made = await api.ok("POST", f"{prefix}/volumes", {"from_empty": {"size": MIB}})
    path = f"{prefix}/volumes/{made['id']}"
    assert made["status"] == "creating"

    reply = await api("PATCH", path, {"perf_iops": 15000})
    help_message = "can't update perf_iops when volume is not available"
    assert (reply.status, reply.body) == (400, invalid(("perf_iops", "constraint", help_message)))

    transient = {
        "type": "transient_state",
        "message": "resource is in a transient state",
        "resource": "volume",
        "resource_id": made["id"],
        "current_state": "creating",
    }
    for method, where, body in (
        ("DELETE", path, None),
        ("PATCH", path, {"size": 2 * MIB}),
        ("POST", f"{prefix}/snapshots", {"volume_id": made["id"]}),
        ("GET", f"{HOST}/volumes/{made['id']}/device", None),
    ):
        reply = await api(method, where, body)
        assert (reply.status, reply.body) == (409, transient), (method, where)
    gate.set()
    assert (await api.settled(path))["status"] == "available"


async def test_shrinking_is_400_on_size(api: Api, prefix: str) -> None:
    volume = await api.volume(from_empty={"size": 2 * MIB})
    reply = await api("PATCH", f"{prefix}/volumes/{volume['id']}", {"size": MIB})
    assert reply.status == 400
    assert [(d["argument_name"], d["reason"]) for d in reply.body["details"]] == [
        ("size", "constraint")
    ]


async def test_unknown_project_is_403_with_resource_and_action(api: Api, prefix: str) -> None:
    volume = await api.volume()
    for kind, body in (
        ("volume", {"from_empty": {"size": MIB}}),
        ("snapshot", {"volume_id": volume["id"]}),
    ):
        reply = await api("POST", f"{prefix}/{kind}s", {**body, "project_id": NOBODY})
        assert reply.status == 403
        assert reply.body == {
            "type": "permissions_denied",
            "message": "insufficient permissions",
            "details": [{"resource": kind, "action": "write"}],
        }


async def test_full_pool_is_403_with_numbers(rig: Rig, prefix: str) -> None:
    api, volume = rig.api, await rig.api.volume()
    real = rig.driver.pool

    async def full() -> Any:
        return replace(await real(), used_bytes=999 * GIB)

    rig.driver.pool = full  # type: ignore[method-assign]
    for kind, body in (
        ("volume", {"from_empty": {"size": MIB}}),
        ("snapshot", {"volume_id": volume["id"]}),
    ):
        reply = await api("POST", f"{prefix}/{kind}s", body)
        assert reply.status == 403
        assert reply.body == {
            "type": "quotas_exceeded",
            "message": "quota(s) exceeded for this resource",
            "details": [{"resource": kind, "quota": 950 * GIB, "current": 999 * GIB}],
            "help_message": reply.body["help_message"],
        }
        assert "999 GiB of" in reply.body["help_message"]


async def test_unknown_class_is_400_on_class(api: Api, prefix: str) -> None:
    body = {"from_empty": {"size": MIB}, "class": "gold"}
    reply = await api("POST", f"{prefix}/volumes", body)
    fault = invalid(("class", "constraint", "class must be one of: bssd, sbs"))
    assert (reply.status, reply.body) == (400, fault)


async def test_undelete_of_what_is_not_deleted_is_412(api: Api) -> None:
    volume = await api.volume()
    snapshot = await api.snapshot(volume["id"])
    for kind, made in (("volume", volume), ("snapshot", snapshot)):
        reply = await api("POST", f"{HOST}/{kind}s/{made['id']}/undelete", {})
        help_message = f"{kind} {made['id']} is not deleted"
        assert (reply.status, reply.body) == (
            412,
            precondition("resource_not_usable", help_message),
        )


async def test_wrong_state_is_412_not_usable(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object) -> None:
        raise WrongState("volume", NOBODY, "error", "change")

    monkeypatch.setattr(type(rig.service.volumes), "delete", refuse)
    reply = await rig.api("DELETE", f"{V1}/volumes/{NOBODY}")
    help_message = f"volume {NOBODY} is error: change is not possible"
    assert (reply.status, reply.body) == (412, precondition("resource_not_usable", help_message))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("secret /dev/vg0/lv"),
        TimeoutError("secret"),
        StorageError("secret: lvcreate said so"),
        RollbackFailed(ValueError("secret"), ValueError("secret")),
        ConnectionResetError("secret"),
        RecursionError("secret"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_else_fails_is_500_without_a_word_of_why(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, prefix: str, error: Exception
) -> None:
    async def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(type(rig.service.volumes), "page", fail)
    reply = await rig.api("GET", f"{prefix}/volumes")
    assert reply.status == 500
    assert reply.body == {"type": "internal_server_error", "message": "Internal error"}
    assert b"secret" not in reply.raw


async def test_no_message_is_the_one_that_breaks_the_python_client(api: Api) -> None:
    """`Validation Error` makes it look for `fields` (wire.md, c)."""
    reply = await api("POST", f"{V1}/volumes", {})
    assert reply.body["message"] != "Validation Error"


async def test_no_room_names_quota_and_current_even_when_zero(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise NoRoom("volume", 0, 0, "none at all")

    monkeypatch.setattr(type(rig.service.volumes), "create", fail)
    body = {"from_empty": {"size": MIB}, "project_id": PROJECT}
    reply = await rig.api("POST", f"{V1}/volumes", body)
    assert reply.body["details"] == [{"resource": "volume", "quota": 0, "current": 0}]
