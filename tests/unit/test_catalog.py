"""The catalog: lists against a plain model of them, durability's settings, and what it refuses."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockd.catalog import Transaction, open_catalog
from blockd.catalog.store import _open
from blockd.domain.effects import SideEffects
from blockd.domain.errors import StartError
from blockd.domain.guest import AttachmentStatus
from blockd.domain.intent import Verb, disk_name
from blockd.domain.listing import OrderBy, Page, SnapshotFilter, VolumeFilter
from blockd.domain.snapshot import Snapshot
from blockd.domain.states import Status
from blockd.domain.volume import Volume

VOLUME = Volume(
    id="v",
    project_id="p",
    name="n",
    size_bytes=1,
    perf_iops=5000,
    storage_class="sbs",
    status=Status.AVAILABLE,
    tags=(),
    parent_snapshot_id=None,
    disk="d",
    created_at="2026-01-01T00:00:00.000000Z",
    updated_at="2026-01-01T00:00:00.000000Z",
)
SNAPSHOT = Snapshot(
    id="s",
    project_id="p",
    name="n",
    size_bytes=1,
    storage_class="sbs",
    status=Status.AVAILABLE,
    public=False,
    tags=(),
    volume_id=None,
    parent=None,
    disk="sd",
    created_at=VOLUME.created_at,
    updated_at=VOLUME.updated_at,
)

names = st.sampled_from(["a", "ab", "aB", "abc", "b", "ä", "%", "_", "a%"])
volumes = st.lists(
    st.builds(
        lambda name, project, tags, status, second, iops: replace(
            VOLUME,
            name=name,
            project_id=project,
            tags=tuple(tags),
            status=status,
            perf_iops=iops,
            created_at=f"2026-01-01T00:00:{second:02d}.000000Z",
        ),
        names,
        st.sampled_from(["p", "q"]),
        st.lists(st.sampled_from(["x", "y", "z"]), max_size=2, unique=True),
        st.sampled_from([Status.AVAILABLE, Status.CREATING, Status.DELETED]),
        st.integers(0, 5),
        st.sampled_from([5000, 15000]),
    ),
    max_size=12,
)
filters = st.builds(
    VolumeFilter,
    project_id=st.sampled_from([None, "p", "r"]),
    name=st.none() | names,
    tags=st.lists(st.sampled_from(["x", "y"]), max_size=2).map(tuple),
    ids=st.lists(st.sampled_from(["v00", "v01", "v07"]), max_size=3).map(tuple),
    volume_type=st.sampled_from([None, "sbs_5k", "sbs_15k", "b_ssd"]),
    include_deleted=st.booleans(),
)
pages = st.builds(
    Page, number=st.integers(1, 4), size=st.integers(1, 5), order=st.sampled_from(list(OrderBy))
)


def expected(rows: list[Volume], wanted: VolumeFilter, page: Page) -> tuple[list[Volume], int]:
    """The same in plain Python."""
    types = {"sbs_5k": 5000, "sbs_15k": 15000}
    found = [
        row
        for row in rows
        if wanted.project_id in (None, row.project_id)
        and row.name.startswith(wanted.name or "")
        and (not wanted.tags or set(wanted.tags) & set(row.tags))
        and (not wanted.ids or row.id in wanted.ids)
        and (wanted.volume_type is None or row.perf_iops == types.get(wanted.volume_type))
        and (wanted.include_deleted or row.status is not Status.DELETED)
    ]
    by_name = page.order in (OrderBy.NAME_ASC, OrderBy.NAME_DESC)
    found.sort(
        key=lambda row: (row.name.encode() if by_name else row.created_at.encode(), row.id),
        reverse=page.order in (OrderBy.NAME_DESC, OrderBy.CREATED_AT_DESC),
    )
    start = (page.number - 1) * page.size
    return found[start : start + page.size], len(found)


@settings(max_examples=200, deadline=None)
@given(volumes, filters, pages)
def test_page_of_volumes_is_what_a_plain_filter_gives(
    rows: list[Volume], wanted: VolumeFilter, page: Page
) -> None:
    rows = [replace(row, id=f"v{number:02d}", disk=f"d{number}") for number, row in enumerate(rows)]
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrations = Path(__file__).parents[2] / "blockd/catalog/migrations"
    for script in sorted(migrations.glob("*.sql")):
        connection.executescript(script.read_text())
    tx = Transaction(connection, None)
    for row in rows:
        tx.add_volume(row)
    assert tx.page_of_volumes(wanted, page) == expected(rows, wanted, page)
    connection.close()


async def test_total_follows_every_commit(tmp_path: Path) -> None:
    async with open_catalog(tmp_path / "c") as catalog:

        async def total() -> int:
            ask = VolumeFilter(project_id="p")
            return (await catalog.read(lambda tx: tx.page_of_volumes(ask, Page())))[1]

        assert await total() == 0
        await catalog.write("one", lambda tx: tx.add_volume(VOLUME))
        assert await total() == await total() == 1
        await catalog.write("none", lambda tx: tx.remove_volume("v"))
        assert await total() == 0


async def test_parent_of_a_snapshot_is_live_and_null_once_it_is_deleted(tmp_path: Path) -> None:
    async with open_catalog(tmp_path / "c") as catalog:

        def make(tx: Transaction) -> None:
            tx.add_volume(VOLUME)
            tx.add_snapshot(replace(SNAPSHOT, volume_id="v"))

        async def parent_name() -> str | None:
            (snapshot,), _ = await catalog.read(
                lambda tx: tx.page_of_snapshots(SnapshotFilter(volume_id="v"), Page())
            )
            return None if snapshot.parent is None else snapshot.parent.name

        await catalog.write("made", make)
        assert await parent_name() == "n"
        await catalog.write("renamed", lambda tx: tx.put_volume(replace(VOLUME, name="m")))
        assert await parent_name() == "m"
        gone = replace(VOLUME, status=Status.DELETED)
        await catalog.write("deleted", lambda tx: tx.put_volume(gone))
        assert await parent_name() is None


async def test_failed_transaction_keeps_nothing(tmp_path: Path) -> None:
    async with open_catalog(tmp_path / "c") as catalog:

        def fail(tx: Transaction) -> None:
            tx.add_volume(VOLUME)
            raise LookupError

        with pytest.raises(LookupError):
            await catalog.write("fails", fail)
        assert await catalog.read(lambda tx: tx.volume("v")) is None


async def test_row_cannot_push_out_another_with_the_same_disk(tmp_path: Path) -> None:
    async with open_catalog(tmp_path / "c") as catalog:
        await catalog.write("one", lambda tx: tx.add_volume(VOLUME))
        thief = replace(VOLUME, id="w")
        with pytest.raises(sqlite3.IntegrityError):
            await catalog.write("two", lambda tx: tx.put_volume(thief))
        assert await catalog.read(lambda tx: tx.volume("v")) == VOLUME


async def test_disks_to_keep_are_those_of_whole_things(tmp_path: Path) -> None:
    rows = {
        "live": replace(VOLUME, id="1", disk="live"),
        "trash": replace(VOLUME, id="2", disk="trash", status=Status.DELETED, deleted_at="x"),
        "broken": replace(VOLUME, id="3", disk="broken", status=Status.ERROR, error="x"),
        "gone": replace(VOLUME, id="4", disk="gone", status=Status.DELETED, error="x"),
    }
    async with open_catalog(tmp_path / "c") as catalog:

        def make(tx: Transaction) -> None:
            for row in rows.values():
                tx.add_volume(row)
            tx.add_snapshot(replace(SNAPSHOT, disk="taken"))

        await catalog.write("made", make)
        asked = [*rows, "taken", "unknown"]
        kept = await catalog.read(lambda tx: tx.disks.to_keep(asked))
    assert kept == {"live", "trash", "taken"}


async def test_intents_come_back_in_order_with_their_phase(tmp_path: Path) -> None:
    path = tmp_path / "c"
    async with open_catalog(path) as catalog:

        def make(tx: Transaction) -> None:
            for number in range(3):
                args: dict[str, object] = {"number": number, "none": None, "list": ["a"]}
                intent = tx.add_intent(Verb.ERASE, f"r{number}", "sbs", "", args)
                tx.put_phase(intent, f"phase {number}")

        await catalog.write("made", make)
    async with open_catalog(path) as catalog:
        intents = await catalog.read(lambda tx: tx.intents())
    assert [(i.resource_id, i.phase, i.args["number"]) for i in intents] == [
        ("r0", "phase 0", 0),
        ("r1", "phase 1", 1),
        ("r2", "phase 2", 2),
    ]


async def test_commits_are_durable_and_migrations_run_once(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "c"
    async with open_catalog(path) as catalog:
        first = await catalog.read(lambda tx: tx.meta("catalog_id"))
    async with open_catalog(path) as catalog:
        assert await catalog.read(lambda tx: tx.meta("catalog_id")) == first
    opened = _open(path, SideEffects())
    try:
        assert opened._writer.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert opened._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    finally:
        opened.close()
    assert path.parent.stat().st_mode & 0o077 == 0


async def test_catalog_of_a_newer_blockd_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 9999")
    connection.close()
    with pytest.raises(StartError, match="schema 9999"):
        async with open_catalog(path):
            pass


async def test_file_that_is_no_catalog_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_bytes(b"somebody's only copy" * 100)
    with pytest.raises(StartError, match="not a database"):
        async with open_catalog(path):
            pass
    assert path.read_bytes() == b"somebody's only copy" * 100


def test_disk_names_are_fit_for_lvm() -> None:
    name = disk_name("00000000-0000-4000-8000-000000000000")
    assert len(name) < 128
    assert name.replace("-", "").isalnum()


def test_attachments_outlive_the_migration_that_lets_them_name_snapshots() -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrations = sorted((Path(__file__).parents[2] / "blockd/catalog/migrations").glob("*.sql"))
    for script in migrations[:8]:
        connection.executescript(script.read_text())
    row = ("a", "v", "qemu:///system", "g", "web", "vda", "attached", VOLUME.created_at)
    connection.execute("INSERT INTO attachments VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
    for script in migrations[8:]:
        connection.executescript(script.read_text())
    tx = Transaction(connection, None)
    tx.add_volume(VOLUME)
    tx.add_snapshot(replace(SNAPSHOT, volume_id="v"))
    (of_volume,) = tx.attachments.of("v")
    tx.attachments.put(replace(of_volume, id="b", volume_id="s", status=AttachmentStatus.ATTACHING))
    volume, snapshot = tx.volume("v"), tx.snapshot("s")
    assert volume is not None
    assert snapshot is not None
    assert [one.domain_name for one in volume.attachments] == ["web"]
    assert [one.id for one in snapshot.attachments] == ["b"]
    assert snapshot.parent is not None
    assert snapshot.parent.is_attached
    assert [one.id for one in tx.attached_snapshots("sbs")] == ["s"]
    tx.attachments.remove("b")
    tx.attachments.remove("a")
    told = connection.execute("SELECT kind, what, status FROM events ORDER BY sequence").fetchall()
    assert told[2:] == [
        ("snapshot", "changed", "in_use"),
        ("snapshot", "changed", "available"),
        ("volume", "changed", "available"),
    ]
    connection.close()
