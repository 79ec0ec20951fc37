"""One SQLite file, one thread that writes it and one that reads it.

WAL with `synchronous=FULL`: a commit is on the disk when it returns (sqlite.org/pragma.html;
NORMAL may lose commits at a power cut). The directory is synced when the file is new, because the
name of a new file is not durable before that.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import TypeVar

from blockd.catalog.counts import Counts
from blockd.catalog.transaction import Transaction
from blockd.domain.effects import SideEffects
from blockd.domain.errors import CatalogUnavailable, StartError
from blockd.domain.intent import new_id

T = TypeVar("T")

_FIRST_RETRY_S = 1.0
_LAST_RETRY_S = 30.0


class Catalog:
    """Reads and writes as functions over a `Transaction`, run in the threads of this object.

    `trouble` is a line while the file cannot be written, None as a rule.
    """

    def __init__(
        self,
        path: Path,
        writer: sqlite3.Connection,
        reader: sqlite3.Connection,
        effects: SideEffects,
    ) -> None:
        self._path = path
        self._writer, self._reader, self._effects = writer, reader, effects
        self.trouble: str | None = None
        self._troubled = asyncio.Event()
        self._write_thread = ThreadPoolExecutor(1, "catalog-write")
        self._read_thread = ThreadPoolExecutor(1, "catalog-read")
        self._counts = Counts()
        #: Grows with every commit, before whoever asked for it knows of it.
        self.generation = 0

    async def write(self, label: str, change: Callable[[Transaction], T]) -> T:
        """Run `change` in a transaction and commit it durably; nothing is kept if it raises.

        A cancelled caller does not stop a commit that has begun.

        Args:
            label: what the commit is for, as a side effect's name: `commit volume created`.

        Raises:
            CatalogUnavailable: the file cannot be written: no room, a failing disk.
        """
        loop = asyncio.get_running_loop()
        try:
            result = await asyncio.shield(
                loop.run_in_executor(self._write_thread, self._commit, label, change)
            )
        except sqlite3.OperationalError as err:
            self.trouble = f"the catalog {self._path} cannot be written: {err}"
            self._troubled.set()
            raise CatalogUnavailable(f"the catalog cannot be written: {err}") from err
        self.trouble = None
        return result

    async def read(self, query: Callable[[Transaction], T]) -> T:
        """Run `query` on a consistent view of the last commit.

        Raises:
            CatalogUnavailable: the file cannot be read.
        """
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._read_thread, self._look, query)
        except sqlite3.OperationalError as err:
            raise CatalogUnavailable(f"the catalog cannot be read: {err}") from err

    async def heal(self) -> None:
        """Wait until it cannot be written, and return when it can again: one small commit each try.

        Nobody else may want to write, and the daemon would seem to be ill for ever.
        """
        await self._troubled.wait()
        self._troubled.clear()
        retry_s = _FIRST_RETRY_S
        while self.trouble is not None:
            await asyncio.sleep(retry_s)
            retry_s = min(retry_s * 2, _LAST_RETRY_S)
            with suppress(CatalogUnavailable):
                await self.write("catalog tried", lambda tx: tx.put_meta("tried", new_id()))
        self._troubled.clear()

    def _commit(self, label: str, change: Callable[[Transaction], T]) -> T:
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            result = change(Transaction(self._writer, None))
            with self._effects.around(f"commit {label}"):
                self._writer.execute("COMMIT")
                self._counts.forget()
                self.generation += 1
        except BaseException:
            # A full disk may leave it open, or have SQLite roll it back (sqlite.org,
            # lang_transaction.html, "Response To Errors Within A Transaction").
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            raise
        return result

    def _look(self, query: Callable[[Transaction], T]) -> T:
        counts = self._counts.view()
        self._reader.execute("BEGIN")
        try:
            return query(Transaction(self._reader, counts))
        finally:
            self._reader.execute("ROLLBACK")

    def close(self) -> None:
        """End both threads, after what they are doing, and close the file."""
        self._write_thread.shutdown(wait=True)
        self._read_thread.shutdown(wait=True)
        self._reader.close()
        self._writer.close()


@asynccontextmanager
async def open_catalog(path: Path, effects: SideEffects | None = None) -> AsyncIterator[Catalog]:
    """The catalog in the file `path`, made and migrated as needed.

    Raises:
        StartError: the file cannot be opened, is no catalog, or was written by a newer blockd.
    """
    catalog = await asyncio.to_thread(_open, path, effects or SideEffects())
    try:
        yield catalog
    finally:
        await asyncio.to_thread(catalog.close)


def _open(path: Path, effects: SideEffects) -> Catalog:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        is_new = not path.exists()
        writer = _connect(path)
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("PRAGMA synchronous = FULL")
        _migrate(writer)
        if is_new:
            _sync_directory(path.parent)
        return Catalog(path, writer, _connect(path), effects)
    except (OSError, sqlite3.Error) as err:
        raise StartError(f"catalog {path}: {err}") from err


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA busy_timeout = 10000")
    return connection


def _migrate(connection: sqlite3.Connection) -> None:
    """Apply the numbered files of `migrations/` that this catalog lacks, each in a transaction."""
    scripts = sorted(
        (
            entry
            for entry in resources.files("blockd.catalog").joinpath("migrations").iterdir()
            if entry.name.endswith(".sql")
        ),
        key=lambda entry: entry.name,
    )
    (done,) = connection.execute("PRAGMA user_version").fetchone()
    if done > len(scripts):
        raise StartError(
            f"the catalog has schema {done}, this blockd knows {len(scripts)}: "
            "install the blockd that wrote it, or a newer one"
        )
    for number, script in enumerate(scripts[done:], done + 1):
        text = script.read_text("utf-8")
        if number == 1:
            text += f"\nINSERT INTO meta VALUES ('catalog_id', '{new_id()}');"
        connection.executescript(f"BEGIN;\n{text}\nPRAGMA user_version = {number};\nCOMMIT;")


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
