"""What the API says of a thick class: type, class, performance, jobs, pools, refusals."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.api.rig import V1, Api, Rig
from tests.support.thick_files import ThickFileDriver

HOST = "/host/v1"
MIB = 1024**2


async def thick_volume(api: Api, **fields: Any) -> Any:
    return await api.volume(V1, **{"class": "bssd"}, **fields)


async def test_class_of_create_chooses_and_a_snapshot_hands_it_on(api: Api, prefix: str) -> None:
    volume = await api.volume(prefix, **{"class": "bssd"}, perf_iops=15000)
    assert (volume["type"], volume["specs"]) == ("b_ssd", {"class": "bssd", "perf_iops": None})
    snapshot = await api.snapshot(volume["id"], prefix)
    assert (snapshot["class"], snapshot["parent_volume"]["type"]) == ("bssd", "b_ssd")
    body = {"from_snapshot": {"snapshot_id": snapshot["id"]}}
    clone = await api.ok("POST", f"{prefix}/volumes", body)
    assert clone["specs"]["class"] == "bssd"
    reply = await api("POST", f"{prefix}/volumes", {**body, "class": "sbs"})
    assert reply.status == 400
    listed = await api.ok("GET", f"{prefix}/volumes?volume_type=b_ssd")
    assert {item["id"] for item in listed["volumes"]} == {volume["id"], clone["id"]}


async def test_performance_of_a_thick_volume_is_400_on_perf_iops(api: Api, prefix: str) -> None:
    volume = await thick_volume(api)
    reply = await api("PATCH", f"{prefix}/volumes/{volume['id']}", {"perf_iops": 5000})
    assert reply.status == 400
    (detail,) = reply.body["details"]
    assert (detail["argument_name"], detail["reason"]) == ("perf_iops", "constraint")


async def test_jobs_on_volumes_have_no_object_and_are_found_by_their_volume(api: Api) -> None:
    volume = await thick_volume(api)
    jobs = await api.ok("GET", f"{HOST}/jobs?volume_id={volume['id']}")
    (job,) = jobs["jobs"]
    assert (job["kind"], job["state"], job["resource"], job["resource_id"]) == (
        "create",
        "succeeded",
        "volume",
        volume["id"],
    )
    assert (job["volume_id"], job["snapshot_id"]) == (volume["id"], None)
    assert (job["bucket"], job["key"]) == (None, None)
    assert job["bytes_done"] == job["bytes_total"] == 4 * MIB
    found = await api.ok("GET", f"{HOST}/jobs?kind=create&state=succeeded")
    assert found["total_count"] == 1


async def test_revert_that_merges_can_be_waited_for_and_not_cancelled(rig: Rig) -> None:
    api, driver = rig.api, rig.drivers["bssd"]
    volume = await thick_volume(api)
    snapshot = await api.snapshot(volume["id"])
    driver.gates["merged"] = gate = asyncio.Event()
    body = {"snapshot_id": snapshot["id"]}
    begun = await api.ok("POST", f"{HOST}/volumes/{volume['id']}/revert", body)
    assert begun["status"] == "updating"
    jobs = await api.ok("GET", f"{HOST}/jobs?kind=revert")
    path = f"{HOST}/jobs/{jobs['jobs'][0]['id']}"
    async with asyncio.timeout(10):
        while not (await driver.disks()).keys().isdisjoint({f"blockd-{snapshot['id']}"}):
            await asyncio.sleep(0)
    assert (await api.ok("GET", f"{V1}/snapshots/{snapshot['id']}"))["status"] == "in_use"
    reply = await api("DELETE", f"{V1}/snapshots/{snapshot['id']}")
    assert (reply.status, reply.body["precondition"]) == (412, "protected_resource")
    reply = await api("POST", f"{path}/cancel")
    assert (reply.status, reply.body["precondition"]) == (412, "resource_not_usable")
    gate.set()
    after = await api.settled(f"{V1}/volumes/{volume['id']}")
    assert after["status"] == "available"
    assert (await api.ok("GET", path))["state"] == "succeeded"
    snapshots = await api.ok("GET", f"{V1}/snapshots?volume_id={volume['id']}")
    assert snapshots["total_count"] == 2


async def test_one_snapshot_too_many_is_403_with_limit_count_and_next_step(api: Api) -> None:
    volume = await thick_volume(api)
    for _ in range(4):
        await api.snapshot(volume["id"])
    reply = await api("POST", f"{V1}/snapshots", {"volume_id": volume["id"]})
    assert (reply.status, reply.body["type"]) == (403, "quotas_exceeded")
    assert reply.body["details"] == [{"resource": "snapshot", "quota": 4, "current": 4}]
    assert "delete one, or raise max_snapshots" in reply.body["help_message"]


async def test_volume_larger_than_what_is_free_is_403_and_nothing_is_made(api: Api) -> None:
    body = {"from_empty": {"size": 2 * 10**12}, "class": "bssd"}
    reply = await api("POST", f"{V1}/volumes", body)
    assert (reply.status, reply.body["type"]) == (403, "quotas_exceeded")
    assert "are needed" in reply.body["help_message"]
    assert (await api.ok("GET", f"{V1}/volumes"))["total_count"] == 0
    assert (await api.ok("GET", f"{HOST}/jobs"))["total_count"] == 0


async def test_lost_snapshot_is_in_error_and_the_host_api_says_why(rig: Rig) -> None:
    driver = rig.drivers["bssd"]
    assert isinstance(driver, ThickFileDriver)
    volume = await thick_volume(rig.api)
    snapshot = await rig.api.snapshot(volume["id"])
    driver.lose(f"blockd-{snapshot['id']}", "its store is full")
    path = f"{V1}/snapshots/{snapshot['id']}"
    async with asyncio.timeout(10):
        while (await rig.api.ok("GET", path))["status"] != "error":
            await asyncio.sleep(0)
    seen = await rig.api.ok("GET", f"{HOST}/snapshots/{snapshot['id']}")
    assert seen["error"] == "its store is full"
    assert (await rig.api.ok("GET", f"{V1}/volumes/{volume['id']}"))["status"] == "available"
    assert rig.lost == ["bssd"]
