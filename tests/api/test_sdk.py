"""The official Python client, unchanged, over the bridge."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from scaleway import Client, ScalewayException
from scaleway.block.v1 import (
    BlockV1API,
    CreateVolumeRequestFromEmpty,
    CreateVolumeRequestFromSnapshot,
)
from scaleway.block.v1alpha1 import BlockV1Alpha1API
from scaleway.block.v1alpha1 import (
    CreateVolumeRequestFromEmpty as FromEmptyAlpha,
)
from scaleway_core.utils import waiter

from blockd.domain.units import MIB
from tests.api.bridge import bridge
from tests.api.rig import NOBODY, ORGANIZATION, OTHER_PROJECT, PROJECT, ZONE, Rig, served
from tests.support.object_store import object_store

GB = 1000**3


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's waiters sleep a second at least, before they first look."""
    clock = SimpleNamespace(time=time.time, sleep=lambda delay_s: time.sleep(delay_s / 100))
    monkeypatch.setattr(waiter, "time", clock)


def client_at(address: str, **more: Any) -> Client:
    return Client(
        api_url=address,
        access_key="SCW" + "A" * 17,
        secret_key=NOBODY,
        default_zone=ZONE,
        default_region="fr-par",
        default_project_id=PROJECT,
        default_organization_id=ORGANIZATION,
        **more,
    )


@pytest_asyncio.fixture
async def address(rig: Rig) -> AsyncIterator[str]:
    async with bridge(rig.socket) as there:
        yield there


async def refused(status: int, type_: str, call: Callable[..., Any], **arguments: Any) -> Any:
    """The error's body."""
    with pytest.raises(ScalewayException) as caught:
        await asyncio.to_thread(call, **arguments)
    assert caught.value.status_code == status, str(caught.value)
    body = caught.value.response.json()
    assert body["type"] == type_
    return body


def empty(size: int = GB) -> CreateVolumeRequestFromEmpty:
    return CreateVolumeRequestFromEmpty(size=size)


async def test_life_of_a_volume_its_snapshot_and_its_clone(rig: Rig, address: str) -> None:
    api = BlockV1API(client_at(address))

    def live() -> None:
        began = datetime.now(UTC)
        volume = api.create_volume(
            name="sdk", from_empty=empty(10 * GB), perf_iops=15000, tags=["a", "b"]
        )
        assert (volume.status, volume.size, volume.type_) == ("creating", 10 * GB, "sbs_15k")
        assert (volume.zone, volume.project_id, volume.tags) == (ZONE, PROJECT, ["a", "b"])
        assert volume.specs is not None
        assert (volume.specs.class_, volume.specs.perf_iops) == ("sbs", 15000)
        assert volume.created_at is not None
        assert abs(volume.created_at - began).total_seconds() < 10
        assert volume.references == []
        assert volume.parent_snapshot_id is None
        assert volume.last_detached_at is None

        volume = api.wait_for_volume(volume_id=volume.id)
        assert volume.status == "available"
        assert api.get_volume(volume_id=volume.id) == volume

        api.update_volume(volume_id=volume.id, name="grown", size=11 * GB, tags=[])
        volume = api.wait_for_volume(volume_id=volume.id)
        assert (volume.name, volume.size, volume.tags) == ("grown", 11 * GB, [])

        snapshot = api.create_snapshot(volume_id=volume.id, name="snap", tags=["s"], public=False)
        assert snapshot.status == "creating"
        snapshot = api.wait_for_snapshot(snapshot_id=snapshot.id)
        assert (snapshot.status, snapshot.size, snapshot.class_) == ("available", 11 * GB, "sbs")
        assert snapshot.parent_volume is not None
        parent = snapshot.parent_volume
        assert (parent.id, parent.name, parent.type_, parent.status) == (
            volume.id,
            "grown",
            "sbs_15k",
            "available",
        )
        changed = api.update_snapshot(snapshot_id=snapshot.id, name="renamed", public=True)
        assert (changed.name, changed.public, changed.tags) == ("renamed", True, ["s"])

        source = CreateVolumeRequestFromSnapshot(snapshot_id=snapshot.id)
        assert source.size == 0  # what the client sends for "as large as the snapshot"
        clone = api.create_volume(name="clone", from_snapshot=source)
        clone = api.wait_for_volume(volume_id=clone.id)
        assert (clone.size, clone.parent_snapshot_id) == (11 * GB, snapshot.id)
        larger = CreateVolumeRequestFromSnapshot(snapshot_id=snapshot.id, size=12 * GB)
        assert api.create_volume(from_snapshot=larger).size == 12 * GB

        api.delete_volume(volume_id=volume.id)
        assert api.get_snapshot(snapshot_id=snapshot.id).parent_volume is None
        api.delete_snapshot(snapshot_id=snapshot.id)
        assert api.wait_for_volume(volume_id=clone.id).status == "available"

    await asyncio.to_thread(live)


async def test_every_filter_order_and_page(rig: Rig, address: str) -> None:
    api = BlockV1API(client_at(address))

    def look() -> None:
        volumes = [
            api.create_volume(name=name, from_empty=empty(), tags=[name], perf_iops=iops)
            for name, iops in (("vb", 5000), ("va", 15000), ("other", 5000))
        ]
        ids = [volume.id for volume in volumes]
        for volume_id in ids:
            api.wait_for_volume(volume_id=volume_id)
        snapshots = [
            api.create_snapshot(volume_id=id_, name=f"s{id_[:4]}", public=False) for id_ in ids
        ]
        for snapshot in snapshots:
            api.wait_for_snapshot(snapshot_id=snapshot.id)

        def listed(**arguments: Any) -> list[str]:
            found = api.list_volumes(include_deleted=False, **arguments)
            assert isinstance(found.total_count, int)
            return [volume.name for volume in found.volumes]

        assert listed() == ["vb", "va", "other"]
        assert listed(name="v") == ["vb", "va"]
        assert listed(tags=["va", "other"]) == ["va", "other"]
        assert listed(volume_ids=[ids[2], ids[0]]) == ["vb", "other"]
        assert listed(volume_type="sbs_15k") == ["va"]
        assert listed(product_resource_id=NOBODY) == []
        assert listed(project_id=OTHER_PROJECT) == []
        assert listed(project_id=NOBODY) == []
        assert listed(organization_id=NOBODY) == []
        for order, expected in (
            ("created_at_asc", ["vb", "va", "other"]),
            ("created_at_desc", ["other", "va", "vb"]),
            ("name_asc", ["other", "va", "vb"]),
            ("name_desc", ["vb", "va", "other"]),
        ):
            assert listed(order_by=order) == expected
        assert listed(page=2, page_size=2) == ["other"]
        assert listed(page=3, page_size=2) == []
        assert api.list_volumes(include_deleted=False, page=9).total_count == 3

        def pictures(**arguments: Any) -> list[str]:
            found = api.list_snapshots(include_deleted=False, **arguments)
            return [snapshot.id for snapshot in found.snapshots]

        assert pictures() == [snapshot.id for snapshot in snapshots]
        assert pictures(volume_id=ids[1]) == [snapshots[1].id]
        assert pictures(name=snapshots[2].name) == [snapshots[2].id]
        assert pictures(order_by="created_at_desc", page=1, page_size=1) == [snapshots[2].id]
        assert pictures(tags=["none"]) == []

        api.delete_volume(volume_id=ids[0])
        api.delete_snapshot(snapshot_id=snapshots[0].id)
        assert listed() == ["va", "other"]
        with_deleted = api.list_volumes(include_deleted=True)
        assert [volume.status for volume in with_deleted.volumes] == [
            "deleted",
            "available",
            "available",
        ]
        assert api.list_snapshots(include_deleted=True).total_count == 3

        types = api.list_volume_types()
        names = ["b_ssd", "sbs_15k", "sbs_5k"]
        assert [kind.type_ for kind in types.volume_types] == names
        assert types.volume_types[0].pricing is None
        assert [kind.type_ for kind in api.list_volume_types_all()] == names
        assert api.list_volume_types(page=2, page_size=2).volume_types == types.volume_types[2:]

    await asyncio.to_thread(look)


async def test_life_of_a_thick_volume(tmp_path: Path) -> None:
    async with served(tmp_path, default_class="bssd") as rig, bridge(rig.socket) as address:
        api = BlockV1API(client_at(address))

        def live() -> None:
            volume = api.create_volume(name="thick", from_empty=empty(10 * GB), perf_iops=5000)
            assert (volume.status, volume.size, volume.type_) == ("creating", 10 * GB, "b_ssd")
            assert volume.specs is not None
            assert (volume.specs.class_, volume.specs.perf_iops) == ("bssd", 0)  # of null
            volume = api.wait_for_volume(volume_id=volume.id)
            assert volume.status == "available"
            api.update_volume(volume_id=volume.id, size=11 * GB)
            assert api.wait_for_volume(volume_id=volume.id).size == 11 * GB
            snapshot = api.create_snapshot(volume_id=volume.id, name="snap", public=False)
            snapshot = api.wait_for_snapshot(snapshot_id=snapshot.id)
            assert (snapshot.status, snapshot.class_) == ("available", "bssd")
            assert snapshot.parent_volume is not None
            assert snapshot.parent_volume.type_ == "b_ssd"
            source = CreateVolumeRequestFromSnapshot(snapshot_id=snapshot.id)
            clone = api.create_volume(name="clone", from_snapshot=source)
            assert api.wait_for_volume(volume_id=clone.id).type_ == "b_ssd"
            assert api.list_volumes(include_deleted=False, volume_type="b_ssd").total_count == 2
            assert api.list_volumes(include_deleted=False, volume_type="sbs_5k").total_count == 0
            (thick, *_) = api.list_volume_types().volume_types
            assert thick.specs is not None
            assert (thick.type_, thick.specs.class_) == ("b_ssd", "bssd")
            api.delete_volume(volume_id=volume.id)
            assert api.get_snapshot(snapshot_id=snapshot.id).parent_volume is None
            api.delete_snapshot(snapshot_id=snapshot.id)

        await asyncio.to_thread(live)
        fault = await refused(
            400,
            "invalid_arguments",
            api.update_volume,
            volume_id=(await asyncio.to_thread(api.list_volumes, include_deleted=False))
            .volumes[0]
            .id,
            perf_iops=15000,
        )
        assert fault["details"][0]["argument_name"] == "perf_iops"


@pytest.mark.parametrize("default_page_size", [None, 7, 100])
async def test_all_pages_hold_everything_once(
    rig: Rig, address: str, default_page_size: int | None
) -> None:
    api = BlockV1API(client_at(address, default_page_size=default_page_size))

    def look() -> None:
        made = [api.create_volume(name=f"v{n:02}", from_empty=empty()).id for n in range(23)]
        default = api.list_volumes(include_deleted=False)
        assert len(default.volumes) == min(23, default_page_size or 20)
        for size in (None, 5, 23, 100):
            everything = api.list_volumes_all(include_deleted=False, page_size=size)
            assert [volume.id for volume in everything] == made
        assert api.list_snapshots_all(include_deleted=True) == []

    await asyncio.to_thread(look)


async def test_errors_are_the_ones_the_client_knows(rig: Rig, address: str) -> None:
    api = BlockV1API(client_at(address))
    volume = await asyncio.to_thread(api.create_volume, from_empty=empty(2 * GB))
    await asyncio.to_thread(api.wait_for_volume, volume_id=volume.id)
    snapshot = await asyncio.to_thread(api.create_snapshot, volume_id=volume.id, public=False)
    await asyncio.to_thread(api.wait_for_snapshot, snapshot_id=snapshot.id)

    for call in (api.get_volume, api.delete_volume, api.update_volume):
        body = await refused(404, "not_found", call, volume_id=NOBODY)
        assert (body["resource"], body["resource_id"]) == ("volume", NOBODY)
        await refused(400, "invalid_arguments", call, volume_id="nope")
    for call in (api.get_snapshot, api.delete_snapshot, api.update_snapshot):
        body = await refused(404, "not_found", call, snapshot_id=NOBODY)
        assert (body["resource"], body["resource_id"]) == ("snapshot", NOBODY)
    await refused(404, "not_found", api.get_volume, volume_id=volume.id, zone="fr-par-1")
    await refused(404, "not_found", api.create_snapshot, volume_id=NOBODY, public=False)
    await refused(400, "invalid_arguments", api.create_volume, from_empty=empty(1))
    await refused(400, "invalid_arguments", api.create_volume)
    invalid = "invalid_arguments"
    await refused(400, invalid, api.list_volumes, include_deleted=False, page_size=101)
    await refused(400, invalid, api.list_volumes, include_deleted=False, order_by="size_asc")
    await refused(400, invalid, api.update_volume, volume_id=volume.id, size=GB)
    smaller = CreateVolumeRequestFromSnapshot(snapshot_id=snapshot.id, size=GB)
    body = await refused(412, "precondition_failed", api.create_volume, from_snapshot=smaller)
    assert body["precondition"] == "resource_not_usable"
    stranger = {"from_empty": empty(), "project_id": NOBODY}
    await refused(403, "permissions_denied", api.create_volume, **stranger)

    device = await rig.api.ok("GET", f"/host/v1/volumes/{volume.id}/device")
    descriptor = os.open(device["path"], os.O_RDONLY)
    body = await refused(412, "precondition_failed", api.delete_volume, volume_id=volume.id)
    assert body["precondition"] == "resource_still_in_use"
    os.close(descriptor)

    target = {"bucket": "backups", "key": "k"}
    export, import_ = (
        api.export_snapshot_to_object_storage,
        api.import_snapshot_from_object_storage,
    )
    missing = {**target, "snapshot_id": "99999999-9999-4999-8999-999999999999"}
    await refused(404, "not_found", export, **missing)
    for asked, arguments in (
        (export, {**target, "snapshot_id": snapshot.id}),
        (import_, {**target, "name": "n"}),
    ):
        body = await refused(412, "precondition_failed", asked, **arguments)
        assert "no object storage" in body["help_message"]

    rig.admit = lambda peer: False
    await refused(403, "permissions_denied", api.get_volume, volume_id=volume.id)


async def test_transient_state_is_409(rig: Rig, address: str) -> None:
    api = BlockV1API(client_at(address))
    rig.driver.gates["create"] = gate = asyncio.Event()
    volume = await asyncio.to_thread(api.create_volume, from_empty=empty())
    arguments = {"volume_id": volume.id, "public": False}
    body = await refused(409, "transient_state", api.create_snapshot, **arguments)
    assert (body["resource_id"], body["current_state"]) == (volume.id, "creating")
    gate.set()


async def test_older_client_finds_the_same_things(rig: Rig, address: str) -> None:
    client = client_at(address)
    older, newer = BlockV1Alpha1API(client), BlockV1API(client)

    def live() -> None:
        volume = older.create_volume(from_empty=FromEmptyAlpha(size=GB), name="old")
        older.wait_for_volume(volume_id=volume.id)
        snapshot = older.create_snapshot(volume_id=volume.id, name="old")
        older.wait_for_snapshot(snapshot_id=snapshot.id)
        assert newer.get_volume(volume_id=volume.id).name == "old"
        assert newer.get_snapshot(snapshot_id=snapshot.id).name == "old"
        assert [v.id for v in older.list_volumes_all()] == [volume.id]
        assert older.list_volume_types().total_count == 3
        older.delete_snapshot(snapshot_id=snapshot.id)
        older.delete_volume(volume_id=volume.id)
        assert newer.list_volumes(include_deleted=False).total_count == 0

    await asyncio.to_thread(live)


async def test_exact_sizes_survive_the_client(rig: Rig, address: str) -> None:
    api = BlockV1API(client_at(address))
    for size in (MIB, MIB + 512, 5 * GB, 10**13):
        volume = await asyncio.to_thread(api.create_volume, from_empty=empty(size))
        assert volume.size == size


@pytest.mark.parametrize("older", [False, True])
async def test_export_and_import_as_the_client_does_them(tmp_path: Path, *, older: bool) -> None:
    with object_store(tmp_path) as server:
        async with served(tmp_path, server.section) as rig, bridge(rig.socket) as address:
            await asyncio.to_thread(_round_trip, client_at(address), older)
        assert server.object("exports/one.qcow2").stat().st_size > 0


def _round_trip(client: Client, older: bool) -> None:
    api: Any = (BlockV1Alpha1API if older else BlockV1API)(client)
    public = {} if older else {"public": False}
    from_empty = FromEmptyAlpha(size=GB) if older else empty()
    volume = api.create_volume(from_empty=from_empty)
    api.wait_for_volume(volume_id=volume.id)
    snapshot = api.create_snapshot(volume_id=volume.id, **public)
    api.wait_for_snapshot(snapshot_id=snapshot.id)
    target = {"bucket": "backups", "key": "exports/one.qcow2"}
    answer = api.export_snapshot_to_object_storage(snapshot_id=snapshot.id, **target)
    assert answer.status == "exporting"
    done = api.wait_for_snapshot(snapshot_id=snapshot.id)
    assert done.status == "available"
    imports = [api.import_snapshot_from_object_storage]
    if older:
        imports.append(api.import_snapshot_from_s3)
    for number, import_ in enumerate(imports):
        made = import_(**target, name=f"back {number}", size=0)
        assert (made.status, made.size, made.parent_volume) == ("creating", GB, None)
        back = api.wait_for_snapshot(snapshot_id=made.id)
        assert (back.status, back.size) == ("available", GB)
