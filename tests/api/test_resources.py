"""Volumes and snapshots: their exact shapes, and their lives."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from blockd.domain.errors import StorageError
from blockd.domain.units import MIB
from tests.api.rig import PROJECT, V1, V1ALPHA1, ZONE, Api, Rig

INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
HOST = "/host/v1"


TYPES = {"sbs": "sbs_5k", "bssd": "b_ssd"}


def volume_shape(prefix: str, made: Any, **expected: Any) -> dict[str, Any]:
    """What a new volume must look like: these keys and no other."""
    assert UUID.fullmatch(made["id"])
    assert INSTANT.fullmatch(made["created_at"])
    assert INSTANT.fullmatch(made["updated_at"])
    shape = {
        "id": made["id"],
        "name": "v",
        "type": "sbs_5k",
        "size": MIB,
        "project_id": PROJECT,
        "created_at": made["created_at"],
        "updated_at": made["updated_at"],
        "references": [],
        "parent_snapshot_id": None,
        "status": "creating",
        "tags": [],
        "zone": ZONE,
        "specs": {"class": "sbs", "perf_iops": 5000},
        "last_detached_at": None,
        "kms_key_id": None,
        **expected,
    }
    if prefix == V1ALPHA1:
        del shape["kms_key_id"]
    return shape


def snapshot_shape(prefix: str, made: Any, volume: Any, **expected: Any) -> dict[str, Any]:
    """What a new snapshot must look like: these keys and no other."""
    assert UUID.fullmatch(made["id"])
    assert INSTANT.fullmatch(made["created_at"])
    assert INSTANT.fullmatch(made["updated_at"])
    shape = {
        "id": made["id"],
        "name": "s",
        "size": MIB,
        "project_id": PROJECT,
        "created_at": made["created_at"],
        "updated_at": made["updated_at"],
        "references": [],
        "status": "creating",
        "parent_volume": {
            "id": volume["id"],
            "name": volume["name"],
            "type": volume["type"],
            "status": "available",
        },
        "tags": [],
        "zone": ZONE,
        "class": "sbs",
        "public": False,
        **expected,
    }
    if prefix == V1ALPHA1:
        del shape["public"]
    return shape


async def test_volume_has_these_keys_and_no_other(
    api: Api, prefix: str, default_class: str
) -> None:
    body = {"name": "v", "from_empty": {"size": MIB}}
    made = await api.ok("POST", f"{prefix}/volumes", body)
    iops = 5000 if default_class == "sbs" else None
    expected: dict[str, Any] = {"specs": {"class": default_class, "perf_iops": iops}}
    expected["type"] = TYPES[default_class]
    assert made == volume_shape(prefix, made, **expected)
    assert type(made["size"]) is int

    seen = await api.settled(f"{prefix}/volumes/{made['id']}")
    expected |= {"status": "available", "updated_at": seen["updated_at"]}
    assert seen == volume_shape(prefix, made, **expected)
    assert await api.ok("GET", f"{prefix}/volumes") == {"volumes": [seen], "total_count": 1}


async def test_snapshot_has_these_keys_and_no_other(
    api: Api, prefix: str, default_class: str
) -> None:
    volume = await api.volume(name="v")
    body = {"name": "s", "volume_id": volume["id"]}
    made = await api.ok("POST", f"{prefix}/snapshots", body)
    expected = {"class": default_class}
    assert made == snapshot_shape(prefix, made, volume, **expected)

    seen = await api.settled(f"{prefix}/snapshots/{made['id']}")
    expected |= {"status": "available", "updated_at": seen["updated_at"]}
    assert seen == snapshot_shape(prefix, made, volume, **expected)
    listed = await api.ok("GET", f"{prefix}/snapshots")
    assert listed == {"snapshots": [seen], "total_count": 1}


async def test_both_prefixes_show_the_same_things(api: Api) -> None:
    volume = await api.volume(V1ALPHA1)
    snapshot = await api.snapshot(volume["id"], V1ALPHA1)
    newer = await api.ok("GET", f"{V1}/volumes/{volume['id']}")
    assert newer == {**volume, "kms_key_id": None}
    newer = await api.ok("GET", f"{V1}/snapshots/{snapshot['id']}")
    assert newer == {**snapshot, "public": False}


async def test_ids_are_taken_in_any_letter_case(api: Api, prefix: str) -> None:
    volume = await api.volume()
    path = f"{prefix}/volumes/{volume['id'].upper()}"
    assert (await api.ok("GET", path))["id"] == volume["id"]
    assert (await api.ok("PATCH", path, {"name": "new"}))["name"] == "new"
    assert (await api("DELETE", path)).status == 204


async def test_patch_changes_what_is_given_and_nothing_else(api: Api, prefix: str) -> None:
    volume = await api.volume(name="v", tags=["a"])
    snapshot = await api.snapshot(volume["id"], name="s", tags=["a"])
    for kind, before in (("volumes", volume), ("snapshots", snapshot)):
        path = f"{prefix}/{kind}/{before['id']}"
        steps: list[tuple[dict[str, Any], dict[str, Any]]] = [
            ({}, {"tags": ["a"]}),
            ({"name": None, "tags": None}, {"tags": ["a"]}),
            ({"name": "n"}, {"name": "n", "tags": ["a"]}),
            ({"tags": ["c", "b", "c"]}, {"name": "n", "tags": ["c", "b", "c"]}),
            ({"tags": []}, {"name": "n", "tags": []}),
        ]
        for body, expected in steps:
            after = await api.ok("PATCH", path, body)
            assert after.items() >= expected.items(), body
            assert after["status"] == "available"
            same = {"id", "size", "created_at", "project_id", "zone"}
            assert {key: after[key] for key in same} == {key: before[key] for key in same}
            assert after == await api.ok("GET", path)


async def test_public_is_said_and_changed_in_v1_alone(api: Api) -> None:
    volume = await api.volume()
    snapshot = await api.snapshot(volume["id"], public=True)
    assert snapshot["public"] is True
    after = await api.ok("PATCH", f"{V1}/snapshots/{snapshot['id']}", {"public": False})
    assert after["public"] is False
    older = await api.ok("GET", f"{V1ALPHA1}/snapshots/{snapshot['id']}")
    assert "public" not in older


async def test_growth_is_answered_updating_with_the_old_size(
    rig: Rig, prefix: str, default_class: str
) -> None:
    api, volume = rig.api, await rig.api.volume()
    rig.driver.gates["grow"] = gate = asyncio.Event()
    path = f"{prefix}/volumes/{volume['id']}"
    body: dict[str, Any] = {"size": str(2 * MIB)}
    if default_class == "sbs":
        body["perf_iops"] = 15000
    during = await api.ok("PATCH", path, body)
    assert (during["status"], during["size"], during["type"]) == (
        "updating",
        MIB,
        TYPES[default_class],
    )
    gate.set()
    after = await api.settled(path)
    assert (after["status"], after["size"]) == ("available", 2 * MIB)
    iops, type_ = (15000, "sbs_15k") if default_class == "sbs" else (None, "b_ssd")
    assert after["type"] == type_
    assert after["specs"] == {"class": default_class, "perf_iops": iops}


async def test_same_size_is_accepted_and_changes_nothing(api: Api, prefix: str) -> None:
    volume = await api.volume()
    path = f"{prefix}/volumes/{volume['id']}"
    assert (await api.ok("PATCH", path, {"size": MIB}))["status"] == "available"


async def test_delete_is_204_without_a_body_and_typed_json(api: Api, prefix: str) -> None:
    volume = await api.volume()
    snapshot = await api.snapshot(volume["id"])
    for path in (f"{prefix}/volumes/{volume['id']}", f"{prefix}/snapshots/{snapshot['id']}"):
        reply = await api("DELETE", path)
        assert (reply.status, reply.raw) == (204, b"")
        assert reply.headers["Content-Type"] == "application/json"


async def test_parent_is_live_and_null_once_deleted(
    api: Api, prefix: str, default_class: str
) -> None:
    volume = await api.volume(name="before")
    snapshot = await api.snapshot(volume["id"])
    path = f"{prefix}/snapshots/{snapshot['id']}"
    change: dict[str, Any] = {"name": "after"}
    if default_class == "sbs":
        change["perf_iops"] = 15000
    await api.ok("PATCH", f"{V1}/volumes/{volume['id']}", change)
    await api.settled(f"{V1}/volumes/{volume['id']}")
    parent = (await api.ok("GET", path))["parent_volume"]
    type_ = "sbs_15k" if default_class == "sbs" else "b_ssd"
    assert (parent["name"], parent["type"]) == ("after", type_)
    await api.ok("DELETE", f"{V1}/volumes/{volume['id']}")
    after = await api.ok("GET", path)
    assert after["parent_volume"] is None
    assert (await api.ok("GET", f"{prefix}/snapshots"))["snapshots"] == [after]


ATTACHED_TO_NOBODY: dict[str, Any] = {"attachments": []}
NOT_QUIET = {
    "content_digest": None,
    "consistency": "crash",
    "frozen_ms": None,
    "group_id": None,
    "suspended_ms": None,
    **ATTACHED_TO_NOBODY,
}


async def test_host_shows_error_and_deletion_beside_the_v1_object(rig: Rig) -> None:
    api = rig.api
    rig.driver.fail_next["create"] = StorageError('no "space" left')
    broken = await api.ok("POST", f"{V1}/volumes", {"from_empty": {"size": MIB}})
    broken = await api.settled(f"{V1}/volumes/{broken['id']}")
    assert broken["status"] == "error"
    told = await api.ok("GET", f"{HOST}/volumes/{broken['id']}")
    assert told == {**broken, "error": 'no "space" left', "deleted_at": None, **ATTACHED_TO_NOBODY}

    volume = await api.volume()
    snapshot = await api.snapshot(volume["id"])
    for kind, made in (("snapshots", snapshot), ("volumes", volume)):
        path = f"{HOST}/{kind}/{made['id']}"
        more = NOT_QUIET if kind == "snapshots" else ATTACHED_TO_NOBODY
        told = await api.ok("GET", path)
        assert told == {**made, "error": None, "deleted_at": None, **more}
        await api.ok("DELETE", f"{V1}/{kind}/{made['id']}")
        deleted = await api.ok("GET", path)
        assert deleted["status"] == "deleted"
        assert INSTANT.fullmatch(deleted["deleted_at"])


async def test_undelete_brings_back_what_was_deleted(api: Api) -> None:
    volume = await api.volume(name="v", tags=["t"])
    snapshot = await api.snapshot(volume["id"])
    for kind, made in (("volumes", volume), ("snapshots", snapshot)):
        for raw in (None, b"{}", b'{"ignored":1}'):
            await api.ok("DELETE", f"{V1}/{kind}/{made['id']}")
            path = f"{HOST}/{kind}/{made['id']}/undelete"
            back = await api.ok("POST", path, raw=raw)
            assert (back["status"], back["deleted_at"], back["error"]) == ("available", None, None)
            seen = await api.ok("GET", f"{V1}/{kind}/{made['id']}")
            assert {**seen, "updated_at": ""} == {**made, "updated_at": ""}


async def test_undelete_with_a_body_that_is_no_object_is_400(api: Api) -> None:
    volume = await api.volume()
    await api.ok("DELETE", f"{V1}/volumes/{volume['id']}")
    for raw in (b"[]", b"x", b"\xff"):
        reply = await api("POST", f"{HOST}/volumes/{volume['id']}/undelete", raw=raw)
        assert reply.status == 400
        assert reply.body["details"][0]["argument_name"] == "body"


@pytest.mark.parametrize(
    ("keep", "kept"), [({}, 1), ({"keep_previous": None}, 1), ({"keep_previous": False}, 0)]
)
async def test_revert_answers_updating_and_keeps_what_was_there(
    rig: Rig, keep: dict[str, Any], kept: int
) -> None:
    api = rig.api
    volume = await api.volume()
    device = await api.ok("GET", f"{HOST}/volumes/{volume['id']}/device")
    assert device == {"path": device["path"], "device_size": MIB}
    snapshot = await api.snapshot(volume["id"])
    body = {"snapshot_id": snapshot["id"].upper(), **keep}
    during = await api.ok("POST", f"{HOST}/volumes/{volume['id']}/revert", body)
    assert (during["id"], during["status"], during["error"]) == (volume["id"], "updating", None)
    assert (await api.settled(f"{V1}/volumes/{volume['id']}"))["status"] == "available"
    assert (await api.ok("GET", f"{V1}/snapshots"))["total_count"] == 1 + kept


async def test_pools_are_told_in_bytes_and_paged(api: Api) -> None:
    pools = await api.ok("GET", f"{HOST}/pools")
    pool, thick = pools["pools"]
    assert pools["total_count"] == 2
    assert pool == {
        "class": "sbs",
        "name": "files/sbs",
        "size": 1000 * 1024**3,
        "used": pool["used"],
        "metadata_size": 1024 * MIB,
        "metadata_used": 128 * MIB,
        "mode": "rw",
        "needs_check": False,
        "free": None,
        "trouble": None,
        "when_full": "queue",
        "group_free": 0,
        "addable": 0,
        "extension": {
            "works": False,
            "reason": "data: volume group files has 0 B free; metadata: volume group files has "
            "0 B free, and each step takes its size twice",
        },
        "fill_rate": None,
        "full_in": None,
        "metadata_full_in": None,
    }
    assert thick == {
        "class": "bssd",
        "name": "files/bssd",
        "size": 1000 * 1024**3,
        "used": 0,
        "metadata_size": 0,
        "metadata_used": 0,
        "mode": "rw",
        "needs_check": False,
        "free": 1000 * 1024**3,
        "trouble": None,
        "when_full": None,
        "group_free": None,
        "addable": 0,
        "extension": {"works": True, "reason": None},
        "fill_rate": None,
        "full_in": None,
        "metadata_full_in": None,
    }
    assert await api.ok("GET", f"{HOST}/pools?page=2") == {"pools": [], "total_count": 2}
    assert (await api("GET", f"{HOST}/pools?page_size=101")).status == 400


async def test_health_is_200_however_bad_it_is(rig: Rig) -> None:
    health = await rig.api.ok("GET", f"{HOST}/health")
    assert health.keys() == {"status", "version", "zone", "pools", "queued", "problems",
                             "catalog_copies"}  # fmt: skip
    assert (health["status"], health["zone"], health["problems"]) == ("ok", ZONE, [])
    rig.driver.fail_next["pool"] = StorageError("the pool is gone")
    health = await rig.api.ok("GET", f"{HOST}/health")
    assert (health["status"], health["problems"]) == ("degraded", ["the pool is gone"])
