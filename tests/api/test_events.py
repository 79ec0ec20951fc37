"""`/host/v1/events`: the committed history, whole and in order, whatever becomes of the reader."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from blockd.api import events as events_api
from blockd.api.events import StreamData
from blockd.domain.units import MIB
from blockd.service import events as events_service
from tests.api.rig import NOBODY, OTHER_PROJECT, PROJECT, V1, Api, Rig, served
from tests.api.stream import following

HOST = "/host/v1"


async def no_followers(rig: Rig) -> None:
    """Wait until the daemon holds nothing for any reader."""
    async with asyncio.timeout(10):
        while rig.service.events.followers:
            await asyncio.sleep(0)


async def test_life_of_a_volume_is_told_change_by_change(rig: Rig, api: Api) -> None:
    async with following(api) as stream:
        volume = await api.volume(name="data")
        path = f"{V1}/volumes/{volume['id']}"
        await api.ok("PATCH", path, {"name": "other"})
        await api.ok("DELETE", path)
        found = await stream.until("volume.changed", "deleted")
    assert [block.tells for block in found] == [
        ("volume.created", "creating"),
        ("volume.changed", "available"),
        ("volume.changed", "available"),
        ("volume.changed", "deleted"),
    ]
    for block in found:
        StreamData.model_validate(block.data)
        assert block.data["id"] == block.id
        assert block.data["resource_id"] == volume["id"]
        assert block.data["project_id"] == PROJECT
    assert found[2].data["resource"]["name"] == "other"
    await no_followers(rig)


async def test_erased_resource_is_told_as_removed_and_null(rig: Rig, api: Api) -> None:
    volume = await api.volume()
    async with following(api) as stream:
        await api.ok("DELETE", f"{V1}/volumes/{volume['id']}")
        await rig.catalog.write("erased", lambda tx: tx.remove_volume(volume["id"]))
        found = await stream.until("volume.removed", "deleted")
    assert found[-1].data["resource"] is None


async def test_snapshots_and_jobs_are_told(tmp_path: Path) -> None:
    async with served(tmp_path, default_class="bssd") as rig, following(rig.api) as stream:
        volume = await rig.api.volume()
        await rig.api.snapshot(volume["id"])
        found = await stream.until("snapshot.changed", "available")
    told = [block.tells for block in found]
    assert ("job.created", "queued") in told
    assert ("job.changed", "succeeded") in told
    assert ("snapshot.created", "creating") in told


async def test_commit_that_changes_nothing_to_be_seen_is_not_told(rig: Rig, api: Api) -> None:
    volume = await api.volume()
    row = await rig.catalog.read(lambda tx: tx.volume(volume["id"]))
    assert row is not None
    async with following(api) as stream:
        await rig.catalog.write("the same again", lambda tx: tx.put_volume(row))
        await api.ok("PATCH", f"{V1}/volumes/{volume['id']}", {"name": "seen"})
        assert (await stream.event()).data["resource"]["name"] == "seen"


async def test_change_that_is_rolled_back_is_not_told(rig: Rig, api: Api) -> None:
    volume = await api.volume()

    def fails(tx: Any) -> None:
        tx.remove_volume(volume["id"])
        raise LookupError

    async with following(api) as stream:
        with pytest.raises(LookupError):
            await rig.catalog.write("fails", fails)
        await api.ok("PATCH", f"{V1}/volumes/{volume['id']}", {"name": "seen"})
        assert (await stream.event()).name == "volume.changed"


@pytest.mark.parametrize("by_header", [True, False])
async def test_reader_that_comes_back_goes_on_where_it_was(api: Api, by_header: bool) -> None:
    async with following(api) as stream:
        await api.volume()
        first = await stream.event()
    await api.volume()
    query = "" if by_header else f"?last_event_id={first.id}"
    headers = {"Last-Event-ID": first.id} if by_header else {}
    async with following(api, query, headers) as stream:
        again = [await stream.event() for _ in range(3)]
    numbers = [int(block.id.split("-")[1]) for block in [first, *again]]
    assert numbers == list(range(numbers[0], numbers[0] + 4))


async def test_reader_of_an_earlier_daemon_goes_on_after_a_restart(tmp_path: Path) -> None:
    async with served(tmp_path) as rig, following(rig.api) as stream:
        volume = await rig.api.volume()
        await stream.until("volume.changed", "available")
        place = stream.last_id
        await rig.api.ok("PATCH", f"{V1}/volumes/{volume['id']}", {"name": "missed"})
    async with served(tmp_path) as rig, following(rig.api, f"?last_event_id={place}") as stream:
        assert (await stream.event()).data["resource"]["name"] == "missed"


async def test_what_is_no_longer_kept_is_told_by_a_reset(rig: Rig, api: Api) -> None:
    async with following(api) as stream:
        place = stream.last_id

    def many(tx: Any) -> None:
        tx._sql.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10501)"
            " INSERT INTO events (at, kind, resource_id, project_id, what, status)"
            " SELECT '', 'volume', '', '', 'changed', 'available' FROM n"
        )

    await rig.catalog.write("many events", many)
    count = "SELECT count(*) FROM events"
    (kept,) = await rig.catalog.read(lambda tx: tx._sql.execute(count).fetchone())
    assert 10_000 <= kept < 10_250
    async with following(api, f"?last_event_id={place}") as stream:
        block = await stream.event()
        assert (block.name, block.data) == ("reset", {"reason": "missed"})
        StreamData.model_validate(block.data)
        await api.volume()
        assert (await stream.event()).name == "volume.created"


async def test_oldest_place_that_is_kept_is_no_reset(rig: Rig, api: Api) -> None:
    await api.volume()
    await api.volume()
    await rig.catalog.write(
        "trimmed", lambda tx: tx._sql.execute("DELETE FROM events WHERE sequence <= 2")
    )
    place = str(await rig.catalog.read(lambda tx: tx.events.newest()))
    history = place.split("-", maxsplit=1)[0]
    async with following(api, f"?last_event_id={history}-2") as stream:
        assert (await stream.event()).id == f"{history}-3"
    async with following(api, f"?last_event_id={history}-1") as stream:
        assert (await stream.event()).name == "reset"


@pytest.mark.parametrize("place", ["nonsense", "00000000-1", "7", "\u00e9", "9" * 500])
async def test_place_that_is_not_of_this_history_is_told_by_a_reset(api: Api, place: str) -> None:
    async with following(api, f"?last_event_id={place}") as stream:
        assert (await stream.event()).name == "reset"


async def test_place_that_is_yet_to_come_is_told_by_a_reset(rig: Rig, api: Api) -> None:
    newest = await rig.catalog.read(lambda tx: tx.events.newest())
    place = f"{newest.history}-{newest.sequence + 1}"
    async with following(api, f"?last_event_id={place}") as stream:
        assert (await stream.event()).name == "reset"


async def test_without_follow_all_that_is_kept_is_told_and_ends(api: Api) -> None:
    volume = await api.volume()
    async with following(api, "?follow=false&last_event_id=oldest") as stream:
        told = [await stream.event() for _ in range(3)]
        with pytest.raises(EOFError):
            await stream.block()
    assert [block.name for block in told] == ["volume.created", "volume.changed", "end"]
    assert told[0].data["resource"]["status"] == volume["status"]
    StreamData.model_validate(told[2].data)


async def test_only_the_project_that_is_asked_for_is_told(api: Api) -> None:
    async with (
        following(api, f"?project_id={OTHER_PROJECT}") as theirs,
        following(api) as everything,
    ):
        await api.volume()
        volume = await api.volume(project_id=OTHER_PROJECT)
        assert (await theirs.event()).data["resource_id"] == volume["id"]
        assert (await everything.event()).data["project_id"] == PROJECT


async def test_only_the_resource_that_is_asked_for_is_told(api: Api) -> None:
    volume = await api.volume()
    async with following(api, f"?resource_id={volume['id']}") as stream:
        await api.volume()
        await api.ok("DELETE", f"{V1}/volumes/{volume['id']}")
        assert (await stream.event()).data["resource_id"] == volume["id"]


async def test_filter_that_is_no_id_is_refused(api: Api) -> None:
    assert (await api("GET", f"{HOST}/events?project_id=me")).status == 400


async def test_stranger_is_not_let_in(rig: Rig, api: Api) -> None:
    rig.admit = lambda peer: False
    assert (await api("GET", f"{HOST}/events")).status == 403


async def test_quiet_stream_gives_a_sign_and_its_place(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_api, "HEARTBEAT_S", 0.05)
    async with following(api, f"?resource_id={NOBODY}") as stream:
        begun = stream.last_id
        await api.volume()
        while (block := await stream.block()).id == begun:
            assert block.comments
    assert not block.name


async def test_burst_is_told_whole_and_in_order(
    rig: Rig, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_service, "_MOST_READ", 3)
    async with following(api) as stream:
        made = await asyncio.gather(*(api.volume() for _ in range(10)))
        found = [await stream.event() for _ in range(20)]
    numbers = [int(block.id.split("-")[1]) for block in found]
    assert numbers == list(range(numbers[0], numbers[0] + 20))
    assert {block.data["resource_id"] for block in found} == {one["id"] for one in made}
    await no_followers(rig)


async def test_client_that_leaves_is_forgotten_at_once(rig: Rig, api: Api) -> None:
    began_s = time.monotonic()
    async with following(api):
        assert rig.service.events.followers == 1
    await no_followers(rig)
    assert time.monotonic() - began_s < events_api.HEARTBEAT_S / 3


async def test_reader_that_takes_nothing_is_let_go(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_api, "PATIENCE_S", 0.2)
    volume = await rig.api.volume()
    async with asked(rig, reads=False):
        await wait_for_followers(rig, 1)
        async with asyncio.timeout(60):
            while rig.service.events.followers:
                await rig.catalog.write("many", lambda tx: change_often(tx, volume["id"]))
    assert (await rig.api("GET", f"{HOST}/health")).status == 200


async def test_streams_above_the_most_are_refused(
    rig: Rig, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_service, "_MOST_FOLLOWERS", 1)
    async with following(api):
        reply = await api("GET", f"{HOST}/events")
        assert (reply.status, reply.body["type"]) == (503, "service_unavailable")
    await no_followers(rig)
    async with following(api):
        pass


async def test_stop_ends_streams_at_once_and_whole(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        async with served(tmp_path) as rig:
            reader = await stack.enter_async_context(asked(rig))
            await reader.readuntil(b"retry: 1000\nid: ")
            began_s = time.monotonic()
        took_s = time.monotonic() - began_s
        assert (await reader.read()).endswith(b"\r\n0\r\n\r\n")
    assert took_s < 2


async def test_stop_does_not_wait_for_a_reader_that_takes_nothing(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        async with served(tmp_path) as rig:
            volume = await rig.api.volume()
            await stack.enter_async_context(asked(rig, reads=False))
            await wait_for_followers(rig, 1)
            for _ in range(8):
                await rig.catalog.write("many", lambda tx: change_often(tx, volume["id"]))
            assert rig.service.events.followers == 1
            began_s = time.monotonic()
        assert time.monotonic() - began_s < 3


async def test_restored_catalog_begins_another_history(tmp_path: Path) -> None:
    from blockd.catalog.restoring import restore_copy  # noqa: PLC0415

    async with served(tmp_path) as rig:
        await rig.api.volume()
        content = rig.catalog._copier.serialize()
        await rig.api.volume()
        place = await rig.catalog.read(lambda tx: tx.events.newest())
    restore_copy(tmp_path / "catalog.db", content, "a copy")
    async with served(tmp_path) as rig:
        for _ in range(3):  # so that the lost numbers have come again
            await rig.api.volume()
        async with following(rig.api, f"?last_event_id={place}") as stream:
            assert (await stream.event()).name == "reset"


async def test_document_describes_the_stream(api: Api) -> None:
    document = await api.ok("GET", "/openapi.json")
    described = document["paths"]["/host/v1/events"]["get"]
    assert list(described["responses"]["200"]["content"]) == ["text/event-stream"]
    named = {(one["in"], one["name"]) for one in described["parameters"]}
    assert named == {
        ("header", "Last-Event-ID"),
        ("query", "follow"),
        ("query", "last_event_id"),
        ("query", "project_id"),
        ("query", "resource_id"),
    }


async def test_answer_bears_an_id_and_is_not_to_be_stored(api: Api) -> None:
    async with following(api) as stream:
        headers = stream.answer.headers
    assert re.fullmatch("[0-9a-f-]{36}", headers["X-Request-Id"])
    assert headers["Content-Type"] == "text/event-stream"
    assert headers["Cache-Control"] == "no-store"


def change_often(tx: Any, volume_id: str) -> None:
    """A thousand changes in one commit."""
    for number in range(1000):
        tx._sql.execute("UPDATE volumes SET size_bytes = ? WHERE id = ?", [MIB + number, volume_id])


async def wait_for_followers(rig: Rig, count: int) -> None:
    """Until so many follow."""
    async with asyncio.timeout(10):
        while rig.service.events.followers != count:
            await asyncio.sleep(0)


@asynccontextmanager
async def asked(rig: Rig, *, reads: bool = True) -> AsyncIterator[asyncio.StreamReader]:
    """A connection on which the stream was asked for; without `reads` nobody takes a byte of it."""
    reader, writer = await asyncio.open_unix_connection(rig.socket)
    if not reads:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(b"GET /host/v1/events HTTP/1.1\r\nHost: blockd\r\n\r\n")
    await writer.drain()
    try:
        yield reader
    finally:
        writer.transport.abort()
