"""Each kind of damage to the catalog's file is seen before anything is written to it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from blockd.catalog import open_catalog
from blockd.catalog.inspection import inspect_catalog
from blockd.catalog.restoring import UNSETTLED, make_anew, put_aside, restore_copy
from blockd.catalog.store import Catalog
from blockd.domain.errors import StartError

ID = "00000000-0000-4000-8000-00000000000a"


async def fill(path: Path) -> str:
    """A catalog with something in it, closed; its id."""
    async with open_catalog(path) as catalog:
        for number in range(300):
            await note(catalog, f"{number}")
        return await catalog.read(lambda tx: tx.meta("catalog_id")) or ""


async def note(catalog: Catalog, text: str) -> None:
    await catalog.write("noted", lambda tx: tx.put_meta(f"note {text}", text * 50))


async def test_sound_catalog_is_known_with_id_and_generation(tmp_path: Path) -> None:
    path = tmp_path / "c"
    id_ = await fill(path)
    found = inspect_catalog(path)
    assert (found.fault, found.catalog_id, found.generation) == (None, id_, 300)


async def test_catalog_of_a_killed_daemon_is_read_with_its_log(tmp_path: Path) -> None:
    path = tmp_path / "c"
    async with open_catalog(path) as catalog:
        await note(catalog, "in the log alone")
        before = {
            file.name: file.read_bytes() for file in tmp_path.glob("c*") if "-shm" not in str(file)
        }
        assert inspect_catalog(path).generation == 1
        for name, content in before.items():
            assert (tmp_path / name).read_bytes() == content


def test_missing_and_empty_files_hold_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c"
    assert inspect_catalog(path).holds_nothing
    path.touch()
    found = inspect_catalog(path)
    assert (found.fault, found.holds_nothing) == ("is empty", True)


async def test_database_without_tables_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    assert inspect_catalog(path).holds_nothing


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        ("header", "is not a database"),
        ("truncated", "is broken"),
        ("cut within a page", "is broken"),
        ("garbled pages", "is broken"),
        ("text file", "is not a database"),
    ],
)
async def test_broken_file_is_told_and_left_as_it_is(
    tmp_path: Path, damage: str, fault: str
) -> None:
    path = tmp_path / "c"
    await fill(path)
    data = bytearray(path.read_bytes())
    match damage:
        case "header":
            data[:100] = b"\xff" * 100
        case "truncated":
            del data[len(data) // 2 // 4096 * 4096 :]
        case "cut within a page":
            del data[len(data) // 2 + 1000 :]
        case "garbled pages":
            for offset in range(4096, len(data), 4096):
                data[offset : offset + 200] = b"\xa5" * 200
        case "text file":
            data[:] = b"somebody's only copy\n" * 100
    path.write_bytes(data)
    found = inspect_catalog(path)
    assert fault in (found.fault or ""), found
    assert not found.holds_nothing
    assert path.read_bytes() == data
    moved = put_aside(path)
    assert [one.read_bytes() for one in moved if not one.name.endswith("-wal")] == [data]
    assert not path.exists()


async def test_database_of_another_program_is_no_catalog(tmp_path: Path) -> None:
    path = tmp_path / "c"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    found = inspect_catalog(path)
    assert found.fault == "is another program's database"
    assert not found.holds_nothing


async def test_file_that_cannot_be_read_is_not_taken_for_lost(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    with pytest.raises(StartError, match=r"cannot be read .* move it away"):
        inspect_catalog(tmp_path / "c")


async def test_restored_copy_is_unsettled_newer_than_all_and_the_lost_files_are_beside_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "c"
    id_ = await fill(path)
    content = path.read_bytes()
    path.write_bytes(b"lost")
    (tmp_path / "c-wal").write_bytes(b"its log")
    moved = restore_copy(path, content, "told")
    assert sorted(one.read_bytes() for one in moved) == [b"its log", b"lost"]
    assert not (tmp_path / "c-wal").exists()
    async with open_catalog(path) as catalog:
        assert await catalog.read(lambda tx: tx.meta(UNSETTLED)) == "told"
        assert await catalog.read(lambda tx: tx.meta("catalog_id")) == id_
        assert catalog.generation == 300 + 2**32


async def test_copy_that_is_no_catalog_after_all_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_bytes(b"lost")
    with pytest.raises(StartError, match="the copy of the catalog is not a database"):
        restore_copy(path, b"no catalog" * 1000, "told")
    assert path.read_bytes() == b"lost"


async def test_copy_of_a_newer_blockd_changes_nothing(tmp_path: Path) -> None:
    path, newer = tmp_path / "c", tmp_path / "newer"
    await fill(newer)
    with closing(sqlite3.connect(newer)) as connection:
        connection.execute("PRAGMA user_version = 9999")
    path.write_bytes(b"lost")
    with pytest.raises(StartError, match="schema 9999"):
        restore_copy(path, newer.read_bytes(), "told")
    assert path.read_bytes() == b"lost"


async def test_catalog_made_anew_has_the_id_of_the_lost_one(tmp_path: Path) -> None:
    path = tmp_path / "c"
    assert make_anew(path, ID, "told") == []
    async with open_catalog(path) as catalog:
        assert await catalog.read(lambda tx: tx.meta("catalog_id")) == ID
        assert await catalog.read(lambda tx: tx.meta(UNSETTLED)) == "told"
