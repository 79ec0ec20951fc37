"""Export, import and jobs over HTTP, with a real object store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.api.rig import NOBODY, OTHER_PROJECT, PROJECT, V1, V1ALPHA1, Rig, served
from tests.support.object_store import Server, object_store

GIB = 1024**3
HOST = "/host/v1"
TARGET = {"bucket": "backups", "key": "exports/one.qcow2"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with object_store(tmp_path_factory.mktemp("store"), looks_again=True) as running:
        yield running


@pytest_asyncio.fixture
async def rig(tmp_path: Path, server: Server) -> AsyncIterator[Rig]:
    async with served(tmp_path, server.section) as started:
        yield started


async def _job(rig: Rig, snapshot_id: str) -> Any:
    """The latest job of a snapshot, once it has ended."""
    async with asyncio.timeout(60):
        while True:
            path = f"{HOST}/jobs?snapshot_id={snapshot_id}&page_size=1"
            jobs = (await rig.api.ok("GET", path))["jobs"]
            if jobs and jobs[0]["finished_at"]:
                return jobs[0]
            await asyncio.sleep(0.01)


async def _snapshot(rig: Rig) -> Any:
    return await rig.api.snapshot((await rig.api.volume())["id"])


@pytest.mark.parametrize("prefix", [V1, V1ALPHA1])
async def test_export_and_import_answer_at_once_and_end_as_jobs(rig: Rig, prefix: str) -> None:
    made = await _snapshot(rig)
    path = f"{prefix}/snapshots/{made['id']}"
    exporting = await rig.api.ok("POST", f"{path}/export-to-object-storage", TARGET)
    assert (exporting["id"], exporting["status"]) == (made["id"], "exporting")
    job = await _job(rig, made["id"])
    assert (job["kind"], job["state"], job["error"]) == ("export", "succeeded", None)
    assert job["bytes_done"] == job["bytes_total"] > 0
    assert (job["resource"], job["resource_id"]) == ("snapshot", made["id"])
    exported = await rig.api.ok("GET", path)
    assert exported["status"] == "available"
    assert exported["updated_at"] > made["updated_at"]

    body = {**TARGET, "name": "back", "tags": ["t"], "size": "2097152", "project_id": OTHER_PROJECT}
    creating = await rig.api.ok("POST", f"{prefix}/snapshots/import-from-object-storage", body)
    assert (creating["status"], creating["parent_volume"]) == ("creating", None)
    assert (creating["name"], creating["tags"], creating["size"]) == ("back", ["t"], 2097152)
    assert creating["project_id"] == OTHER_PROJECT
    back = await _job(rig, creating["id"])
    assert back["content_digest"] == job["content_digest"]
    told = await rig.api.ok("GET", f"{HOST}/snapshots/{creating['id']}")
    assert (told["status"], told["content_digest"]) == ("available", job["content_digest"])


async def test_import_has_an_older_name_under_the_older_prefix_alone(rig: Rig) -> None:
    made = await _snapshot(rig)
    await rig.api.ok("POST", f"{V1}/snapshots/{made['id']}/export-to-object-storage", TARGET)
    await _job(rig, made["id"])
    creating = await rig.api.ok("POST", f"{V1ALPHA1}/snapshots/import-from-s3", TARGET)
    assert creating["size"] == made["size"]
    assert (await _job(rig, creating["id"]))["state"] == "succeeded"
    assert (await rig.api("POST", f"{V1}/snapshots/import-from-s3", TARGET)).status == 404


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bucket", "No"),
        ("bucket", "ab"),
        ("bucket", "UPPER"),
        ("bucket", "10.0.0.1"),
        ("bucket", "a..b"),
        ("bucket", "../etc"),
        ("bucket", None),
        ("key", ""),
        ("key", "/a"),
        ("key", "a/../b"),
        ("key", "a//b"),
        ("key", "x" * 1025),
        ("key", "é" * 600),
        ("key", "a\nb"),
        ("key", 7),
        ("compression", "gzip"),
    ],
)
async def test_what_is_no_bucket_or_key_is_refused_by_name(
    rig: Rig, field: str, value: object
) -> None:
    path = f"{V1}/snapshots/{NOBODY}/export-to-object-storage"
    reply = await rig.api("POST", path, {**TARGET, field: value})
    assert reply.status == 400
    assert [detail["argument_name"] for detail in reply.body["details"]] == [field]


async def test_what_cannot_be_imported_is_refused_and_makes_nothing(
    rig: Rig, server: Server
) -> None:
    server.object("page.html").write_text("<html></html>" * 100)
    path = f"{V1}/snapshots/import-from-object-storage"
    for body, argument, words in (
        ({"bucket": "backups", "key": "missing.qcow2"}, "key", "no object"),
        ({"bucket": "nobucket", "key": "some.qcow2"}, "bucket", "no bucket"),
        ({"bucket": "backups", "key": "page.html"}, "key", "no QCOW2"),
    ):
        reply = await rig.api("POST", path, body)
        assert reply.status == 400
        (detail,) = reply.body["details"]
        assert (detail["argument_name"], detail["reason"]) == (argument, "constraint")
        assert words in detail["help_message"]
    assert (await rig.api.ok("GET", f"{V1}/snapshots"))["total_count"] == 0
    assert (await rig.api.ok("GET", f"{HOST}/jobs"))["total_count"] == 0


async def test_export_to_a_bucket_that_does_not_exist_is_refused_at_once(rig: Rig) -> None:
    made = await _snapshot(rig)
    path = f"{V1}/snapshots/{made['id']}/export-to-object-storage"
    reply = await rig.api("POST", path, {**TARGET, "bucket": "nobucket"})
    assert (reply.status, reply.body["details"][0]["argument_name"]) == (400, "bucket")
    assert (await rig.api.ok("GET", f"{V1}/snapshots/{made['id']}"))["status"] == "available"


async def test_jobs_are_listed_newest_first_and_by_filter(rig: Rig) -> None:
    ids = []
    for number in range(3):
        made = await _snapshot(rig)
        target = {**TARGET, "key": f"exports/{number}.qcow2"}
        await rig.api.ok("POST", f"{V1}/snapshots/{made['id']}/export-to-object-storage", target)
        ids.append((await _job(rig, made["id"]))["id"])
    verifying = await rig.api.ok("POST", f"{HOST}/object-storage/verify", target)
    assert (verifying["kind"], verifying["resource_id"]) == ("verify", None)
    listed = await rig.api.ok("GET", f"{HOST}/jobs")
    assert [job["id"] for job in listed["jobs"]] == [verifying["id"], *reversed(ids)]
    for query, count in (
        ("kind=export", 3),
        ("kind=verify", 1),
        ("kind=import", 0),
        (f"project_id={PROJECT}", 4),
        ("kind=export&state=succeeded&page_size=2", 3),
    ):
        assert (await rig.api.ok("GET", f"{HOST}/jobs?{query}"))["total_count"] == count
    assert (await rig.api("GET", f"{HOST}/jobs?state=bad")).status == 400
    assert (await rig.api("GET", f"{HOST}/jobs/{NOBODY}")).status == 404


async def test_cancel_of_a_job_that_has_ended_is_412(rig: Rig) -> None:
    made = await _snapshot(rig)
    await rig.api.ok("POST", f"{V1}/snapshots/{made['id']}/export-to-object-storage", TARGET)
    job = await _job(rig, made["id"])
    reply = await rig.api("POST", f"{HOST}/jobs/{job['id']}/cancel")
    assert (reply.status, reply.body["precondition"]) == (412, "resource_not_usable")
    assert (await rig.api("POST", f"{HOST}/jobs/{NOBODY}/cancel")).status == 404


async def test_export_sent_twice_with_one_key_is_one_job(rig: Rig) -> None:
    made = await _snapshot(rig)
    path = f"{V1}/snapshots/{made['id']}/export-to-object-storage"
    headers = {"Idempotency-Key": "once"}
    first = await rig.api("POST", path, TARGET, headers=headers)
    second = await rig.api("POST", path, TARGET, headers=headers)
    assert (first.status, first.raw) == (200, second.raw)
    await _job(rig, made["id"])
    assert (await rig.api.ok("GET", f"{HOST}/jobs"))["total_count"] == 1


async def test_import_and_verification_sent_twice_with_one_key_are_one_job_each(rig: Rig) -> None:
    made = await _snapshot(rig)
    await rig.api.ok("POST", f"{V1}/snapshots/{made['id']}/export-to-object-storage", TARGET)
    await _job(rig, made["id"])
    for path in (
        f"{V1}/snapshots/import-from-object-storage",
        f"{V1ALPHA1}/snapshots/import-from-s3",
        f"{HOST}/object-storage/verify",
    ):
        headers = {"Idempotency-Key": "once"}
        before = (await rig.api.ok("GET", f"{HOST}/jobs"))["total_count"]
        first = await rig.api("POST", path, TARGET, headers=headers)
        second = await rig.api("POST", path, TARGET, headers=headers)
        assert (first.status, first.raw) == (200, second.raw)
        other = await rig.api("POST", path, {**TARGET, "key": "other"}, headers=headers)
        assert (other.status, other.body["type"]) == (409, "already_exists")
        assert (await rig.api.ok("GET", f"{HOST}/jobs"))["total_count"] == before + 1


async def test_import_is_public_under_v1_alone(rig: Rig) -> None:
    made = await _snapshot(rig)
    await rig.api.ok("POST", f"{V1}/snapshots/{made['id']}/export-to-object-storage", TARGET)
    await _job(rig, made["id"])
    for prefix, public in ((V1, True), (V1ALPHA1, False)):
        path = f"{prefix}/snapshots/import-from-object-storage"
        back = await rig.api.ok("POST", path, {**TARGET, "public": True})
        told = await rig.api.ok("GET", f"{V1}/snapshots/{back['id']}")
        assert told["public"] is public


async def test_document_tells_the_prefixes_of_import_apart(rig: Rig) -> None:
    document = await rig.api.ok("GET", "/openapi.json")

    def takes(prefix: str) -> Any:
        path = f"{prefix.replace('xx-lab-1', '{zone}')}/snapshots/import-from-object-storage"
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        name = body["schema"]["$ref"].rsplit("/", 1)[1]
        return document["components"]["schemas"][name]["properties"]

    assert takes(V1).keys() - takes(V1ALPHA1).keys() == {"public"}
    assert takes(V1)["size"]["description"] == "absent or 0: the image's own"
