"""Every statement of the catalog, as methods that take and give domain values."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from blockd.catalog.attachment_rows import AttachmentRows
from blockd.catalog.counts import CountsView
from blockd.catalog.disk_rows import DiskRows
from blockd.catalog.event_rows import EventRows
from blockd.catalog.group_rows import GroupRows
from blockd.catalog.job_rows import JobRows
from blockd.catalog.meta_rows import MetaRows
from blockd.catalog.trash_rows import TrashRows
from blockd.domain.guest import Attachment
from blockd.domain.idempotency import AnswerExists, FirstAnswer
from blockd.domain.intent import Intent, Verb
from blockd.domain.job import JobKind
from blockd.domain.listing import OrderBy, Page, SnapshotFilter, VolumeFilter
from blockd.domain.snapshot import Consistency, ParentVolume, Snapshot
from blockd.domain.states import Status
from blockd.domain.volume import TYPE_OF_IOPS, Volume

_VOLUME_COLUMNS: Final = (
    "id, project_id, name, size_bytes, perf_iops, storage_class, status, tags, "
    "parent_snapshot_id, disk, created_at, updated_at, last_detached_at, deleted_at, error"
)
_SNAPSHOT_COLUMNS: Final = (
    "id, project_id, name, size_bytes, storage_class, status, public, tags, "
    "volume_id, disk, created_at, updated_at, deleted_at, error, content_digest, origin_disk, "
    "consistency, frozen_ms"
)
_SNAPSHOT_SELECT: Final = (
    "SELECT "
    + ", ".join(f"s.{column}" for column in _SNAPSHOT_COLUMNS.split(", "))
    + ", v.id, v.name, v.perf_iops, v.status FROM snapshots s "
    "LEFT JOIN volumes v ON v.id = s.volume_id AND v.status <> 'deleted'"
)
_ORDERS: Final = {
    OrderBy.CREATED_AT_ASC: "{t}created_at, {t}id",
    OrderBy.CREATED_AT_DESC: "{t}created_at DESC, {t}id DESC",
    OrderBy.NAME_ASC: "{t}name, {t}id",
    OrderBy.NAME_DESC: "{t}name DESC, {t}id DESC",
}
#: As rows have it: 0 where the class has none.
_IOPS_OF_TYPE: Final = {name: iops or 0 for iops, name in TYPE_OF_IOPS.items()}


class Transaction(MetaRows):
    """Statements on one connection, within a transaction that the store begins and ends."""

    def __init__(self, connection: sqlite3.Connection, counts: CountsView | None) -> None:
        super().__init__(connection)
        self._counts = counts
        self.jobs, self.disks = JobRows(connection), DiskRows(connection)
        self.trash, self.events = TrashRows(connection), EventRows(connection)
        self.attachments, self.groups = AttachmentRows(connection), GroupRows(connection)

    # volumes

    def volume(self, volume_id: str) -> Volume | None:
        """The volume, whatever its status."""
        attachments = {volume_id: self.attachments.of(volume_id)}
        return next(self._volumes("WHERE id = ?", [volume_id], attachments), None)

    def add_volume(self, volume: Volume) -> None:
        """Insert a new row."""
        self._insert("volumes", _VOLUME_COLUMNS, _volume_row(volume))

    def put_volume(self, volume: Volume) -> None:
        """Replace the row."""
        self._replace("volumes", _VOLUME_COLUMNS, _volume_row(volume))

    def remove_volume(self, volume_id: str) -> None:
        """Forget the row."""
        self._sql.execute("DELETE FROM volumes WHERE id = ?", [volume_id])
        self.trash.forget(volume_id)

    def volumes_with_fronts(self, storage_class: str) -> list[Volume]:
        """Those whose bytes can be used: neither creating, deleted, nor in error."""
        return list(
            self._volumes(
                "WHERE storage_class = ? AND status IN ('available', 'updating')", [storage_class]
            )
        )

    def volumes_of(self, storage_class: str) -> list[Volume]:
        """All of a class, whatever their status."""
        return list(self._volumes("WHERE storage_class = ? ORDER BY id", [storage_class]))

    def provisioned_bytes(self, storage_class: str) -> int:
        """The sum of all volumes' sizes, as they are promised to users.

        Trash is included, and growth that is under way.
        """
        (total,) = self._sql.execute(
            "SELECT coalesce(sum("
            " max(v.size_bytes, coalesce(json_extract(i.args, '$.size_bytes'), 0))), 0)"
            " FROM volumes v LEFT JOIN intents i"
            " ON i.resource_id = v.id AND i.verb = 'change_volume' WHERE v.storage_class = ?",
            [storage_class],
        ).fetchone()
        return int(total)

    def page_of_volumes(self, wanted: VolumeFilter, page: Page) -> tuple[list[Volume], int]:
        """One page, and the number of matches on all pages."""
        where = _Where()
        where.scope("", wanted.project_id, wanted.include_deleted, wanted.name, wanted.tags)
        where.any_of("id", wanted.ids)
        if wanted.volume_type is not None:
            where.add("perf_iops = ?", _IOPS_OF_TYPE.get(wanted.volume_type, -1))
        if wanted.product_resource_id is not None:
            where.add(
                "id IN (SELECT resource_id FROM attachments WHERE domain_id = ?)",
                wanted.product_resource_id,
            )
        total = self._total(f"SELECT count(*) FROM volumes {where}", where.args)
        order = _ORDERS[page.order].format(t="")
        # Ids first, from an index alone: skipping rows is then cheap.
        ids = f"SELECT id FROM volumes {where} ORDER BY {order} LIMIT ? OFFSET ?"
        args = [*where.args, *_window(page)]
        return list(self._volumes(f"WHERE id IN ({ids}) ORDER BY {order}", args)), total

    def _volumes(
        self,
        rest: str,
        args: Sequence[object],
        attachments: Mapping[str, tuple[Attachment, ...]] | None = None,
    ) -> Iterator[Volume]:
        rows = self._sql.execute(f"SELECT {_VOLUME_COLUMNS} FROM volumes {rest}", args)
        known = self.attachments.by_resource() if attachments is None else attachments
        return (_volume(row, known.get(row[0], ())) for row in rows)

    # snapshots

    def snapshot(self, snapshot_id: str) -> Snapshot | None:
        """The snapshot, whatever its status."""
        attachments = {snapshot_id: self.attachments.of(snapshot_id)}
        row = next(self._snapshots("WHERE s.id = ?", [snapshot_id], attachments), None)
        if row is None:
            return None
        group_id, suspended_ms = self.groups.of(snapshot_id)
        return replace(row, group_id=group_id, suspended_ms=suspended_ms)

    def add_snapshot(self, snapshot: Snapshot) -> None:
        """Insert a new row."""
        self._insert("snapshots", _SNAPSHOT_COLUMNS, _snapshot_row(snapshot))

    def put_snapshot(self, snapshot: Snapshot) -> None:
        """Replace the row."""
        self._replace("snapshots", _SNAPSHOT_COLUMNS, _snapshot_row(snapshot))

    def remove_snapshot(self, snapshot_id: str) -> None:
        """Forget the row."""
        self._sql.execute("DELETE FROM snapshots WHERE id = ?", [snapshot_id])
        self.trash.forget(snapshot_id)

    def snapshots_of(self, storage_class: str) -> list[Snapshot]:
        """All of a class, whatever their status."""
        return list(self._snapshots("WHERE s.storage_class = ? ORDER BY s.id", [storage_class]))

    def attached_snapshots(self, storage_class: str) -> list[Snapshot]:
        """Those whose bytes are whole and that guests have, or are about to get."""
        return list(
            self._snapshots(
                "WHERE s.id IN (SELECT resource_id FROM attachments) AND s.storage_class = ?"
                " AND s.status IN ('available', 'exporting') ORDER BY s.id",
                [storage_class],
            )
        )

    def page_of_snapshots(self, wanted: SnapshotFilter, page: Page) -> tuple[list[Snapshot], int]:
        """One page, and the number of matches on all pages."""
        where = _Where()
        where.scope("s.", wanted.project_id, wanted.include_deleted, wanted.name, wanted.tags)
        if wanted.volume_id is not None:
            where.add("s.volume_id = ?", wanted.volume_id)
        total = self._total(f"SELECT count(*) FROM snapshots s {where}", where.args)
        order = _ORDERS[page.order].format(t="s.")
        ids = f"SELECT s.id FROM snapshots s {where} ORDER BY {order} LIMIT ? OFFSET ?"
        args = [*where.args, *_window(page)]
        return list(self._snapshots(f"WHERE s.id IN ({ids}) ORDER BY {order}", args)), total

    def _snapshots(
        self,
        rest: str,
        args: Sequence[object],
        attachments: Mapping[str, tuple[Attachment, ...]] | None = None,
    ) -> Iterator[Snapshot]:
        # Once, as there are next to none: a join costs each row.
        holders, attached = self.jobs.holders(), self.attachments.resource_ids()
        known = self.attachments.by_resource() if attachments is None else attachments
        rows = self._sql.execute(f"{_SNAPSHOT_SELECT} {rest}", args)
        return (
            _snapshot(row, holders.get(row[0]), row[8] in attached, known.get(row[0], ()))
            for row in rows
        )

    # intents

    def add_intent(
        self, verb: Verb, resource_id: str, storage_class: str, phase: str, args: dict[str, object]
    ) -> Intent:
        """Journal what is about to be done."""
        cursor = self._sql.execute(
            "INSERT INTO intents (verb, resource_id, storage_class, phase, args)"
            " VALUES (?, ?, ?, ?, ?)",
            [verb, resource_id, storage_class, phase, json.dumps(args)],
        )
        return Intent(cursor.lastrowid or 0, verb, resource_id, storage_class, phase, args)

    def put_phase(self, intent: Intent, phase: str) -> None:
        """Note how far an intent has come."""
        self._sql.execute("UPDATE intents SET phase = ? WHERE id = ?", [phase, intent.id])

    def remove_intent(self, intent: Intent) -> None:
        """It is finished, or undone."""
        self._sql.execute("DELETE FROM intents WHERE id = ?", [intent.id])

    def intent(self, intent_id: int) -> Intent | None:
        """The intent as it stands now, None when it is off the journal."""
        return next(iter(self._intents("WHERE id = ?", [intent_id])), None)

    def intents(self) -> list[Intent]:
        """All unfinished ones, in the order in which they were begun."""
        return self._intents("ORDER BY id", [])

    def intent_count(self) -> int:
        """How many are unfinished."""
        (count,) = self._sql.execute("SELECT count(*) FROM intents").fetchone()
        return int(count)

    def intents_of(self, storage_class: str, first_id: int) -> list[Intent]:
        """Those of one class from `first_id` on, in the order in which they were begun."""
        return self._intents(
            "WHERE storage_class = ? AND id >= ? ORDER BY id", [storage_class, first_id]
        )

    def _intents(self, rest: str, args: Sequence[object]) -> list[Intent]:
        rows = self._sql.execute(
            f"SELECT id, verb, resource_id, storage_class, phase, args FROM intents {rest}", args
        )
        return [Intent(r[0], Verb(r[1]), r[2], r[3], r[4], json.loads(r[5])) for r in rows]

    # answers

    def answer(self, key: str, route: str, oldest: str) -> FirstAnswer | None:
        """What was answered to `key` on `route`, not before the instant `oldest`."""
        row = self._sql.execute(
            "SELECT key, route, body_sha256, status, body FROM answers"
            " WHERE key = ? AND route = ? AND created_at >= ?",
            [key, route, oldest],
        ).fetchone()
        return None if row is None else FirstAnswer(*row)

    def add_answer(self, answer: FirstAnswer, now: str, forget_before: str) -> None:
        """Remember an answer, and forget the old ones.

        Raises:
            AnswerExists: another request was first.
        """
        self._sql.execute("DELETE FROM answers WHERE created_at < ?", [forget_before])
        try:
            self._sql.execute(
                "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?)",
                [answer.key, answer.route, answer.body_sha256, answer.status, answer.body, now],
            )
        except sqlite3.IntegrityError as err:
            raise AnswerExists(answer.key) from err

    def put_answer(self, answer: FirstAnswer) -> None:
        """Replace what was kept of it: more is known now."""
        self._sql.execute(
            "UPDATE answers SET body = ? WHERE key = ? AND route = ?",
            [answer.body, answer.key, answer.route],
        )

    def remove_answer(self, answer: FirstAnswer) -> None:
        """It has not come true: the key may be used again."""
        self._sql.execute(
            "DELETE FROM answers WHERE key = ? AND route = ?", [answer.key, answer.route]
        )

    def _insert(self, table: str, columns: str, row: Sequence[object], rest: str = "") -> None:
        marks = ", ".join("?" * len(row))
        self._sql.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks}) {rest}", row)

    def _replace(self, table: str, columns: str, row: Sequence[object]) -> None:
        # Not REPLACE INTO: that would also delete another row that has the same disk.
        edits = ", ".join(f"{column} = excluded.{column}" for column in columns.split(", ")[1:])
        self._insert(table, columns, row, f"ON CONFLICT (id) DO UPDATE SET {edits}")

    def _total(self, sql: str, args: Sequence[object]) -> int:
        if self._counts is not None:
            return self._counts.total(self._sql, sql, args)
        (count,) = self._sql.execute(sql, args).fetchone()
        return int(count)


class _Where:
    """Conditions joined by AND, with their arguments."""

    def __init__(self) -> None:
        self._conditions: list[str] = []
        self.args: list[object] = []

    def add(self, condition: str, *args: object) -> None:
        self._conditions.append(condition)
        self.args += args

    def any_of(self, column: str, values: Sequence[str]) -> None:
        if values:
            self.add(f"{column} IN ({', '.join('?' * len(values))})", *values)

    def scope(
        self,
        table: str,
        project_id: str | None,
        include_deleted: bool,
        name: str | None,
        tags: Sequence[str],
    ) -> None:
        """What both lists can be asked for; `table` is an alias with its dot, or empty."""
        if project_id is not None:
            self.add(f"{table}project_id = ?", project_id)
        if not include_deleted:
            self.add(f"{table}status <> 'deleted'")
        if name is not None:
            self.add(f"substr({table}name, 1, ?) = ?", len(name), name)
        if tags:
            marks = ", ".join("?" * len(tags))
            self.add(
                f"{table}tags <> '[]' AND"
                f" EXISTS (SELECT 1 FROM json_each({table}tags) WHERE value IN ({marks}))",
                *tags,
            )

    def __str__(self) -> str:
        return "WHERE " + " AND ".join(self._conditions) if self._conditions else ""


def _window(page: Page) -> tuple[int, int]:
    """LIMIT and OFFSET; a page number beyond SQLite's integers is beyond the end as well."""
    return page.size, min((page.number - 1) * page.size, 2**62)


def _volume_row(volume: Volume) -> list[object]:
    return [
        volume.id,
        volume.project_id,
        volume.name,
        volume.size_bytes,
        volume.perf_iops or 0,
        volume.storage_class,
        volume.status,
        json.dumps(volume.tags),
        volume.parent_snapshot_id,
        volume.disk,
        volume.created_at,
        volume.updated_at,
        volume.last_detached_at,
        volume.deleted_at,
        volume.error,
    ]


def _volume(row: Sequence[Any], attachments: tuple[Attachment, ...]) -> Volume:
    values = list(row)
    values[4], values[6:8] = row[4] or None, (Status(row[6]), _tags(row[7]))
    values.append(attachments)
    return Volume(*values)


def _snapshot_row(snapshot: Snapshot) -> list[object]:
    return [
        snapshot.id,
        snapshot.project_id,
        snapshot.name,
        snapshot.size_bytes,
        snapshot.storage_class,
        snapshot.status,
        int(snapshot.public),
        json.dumps(snapshot.tags),
        snapshot.volume_id,
        snapshot.disk,
        snapshot.created_at,
        snapshot.updated_at,
        snapshot.deleted_at,
        snapshot.error,
        snapshot.content_digest,
        snapshot.origin_disk,
        snapshot.consistency,
        snapshot.frozen_ms,
    ]


def _snapshot(
    row: Sequence[Any],
    held_by: JobKind | None,
    parent_is_attached: bool,
    attachments: tuple[Attachment, ...],
) -> Snapshot:
    values, parent_row = list(row[:18]), row[18:]
    parent = None
    if parent_row[0] is not None:
        parent_id, name, perf_iops, status = parent_row
        parent = ParentVolume(
            parent_id, name, perf_iops or None, Status(status), parent_is_attached
        )
    values[5:9] = Status(row[5]), bool(row[6]), _tags(row[7]), row[8], parent
    values[17] = None if row[16] is None else Consistency(row[16])
    values += [held_by, None, None, attachments]  # its group is asked for apart
    return Snapshot(*values)


def _tags(text: str) -> tuple[str, ...]:
    return () if text == "[]" else tuple(json.loads(text))
