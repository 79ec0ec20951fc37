"""Telling the events of disks that are gone, and of their return, which is no change of a row.

What the last event of a resource said is in the catalog: so one that went, or came back, while
nobody looked is told by the next start, and none twice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from blockd.catalog import Catalog, Transaction
from blockd.domain.event import EventKind
from blockd.domain.states import AVAILABLE, ERROR, EXPORTING, Status, seen_status
from blockd.service.classes import StorageClass

#: As which rows a reader sees one in error whose disk is gone.
SEEN_IN_ERROR: Final[Mapping[str, Collection[str]]] = {
    EventKind.VOLUME: {AVAILABLE},
    EventKind.SNAPSHOT: {AVAILABLE, EXPORTING},
}

_News = tuple[EventKind, str, str, Status]


async def tell_of_missing(
    catalog: Catalog, storage_class: StorageClass, before: Collection[str]
) -> None:
    """Tell of each volume and snapshot whose disk is gone, or back, and was not told of.

    Args:
        before: the disks that were missing with the last call.

    Raises:
        CatalogUnavailable: it cannot be read, or written.
    """

    def tell(tx: Transaction) -> None:
        for news in _news(tx, storage_class, before):
            tx.events.tell(*news)

    if await catalog.read(lambda tx: _news(tx, storage_class, before)):
        await catalog.write("disks gone or back told", tell)


def _news(tx: Transaction, storage_class: StorageClass, before: Collection[str]) -> list[_News]:
    told, missing, news = tx.events.told_in_error(), storage_class.missing, list[_News]()
    if not (told or missing or before):
        return news
    for owner in tx.disks.owners(storage_class.name):
        kind, is_missing = EventKind(owner.resource), owner.disk in missing
        is_told = owner.id in told or (owner.disk in before and not is_missing)
        if owner.status not in SEEN_IN_ERROR[kind] or is_told is is_missing:
            continue
        row = tx.volume(owner.id) if kind is EventKind.VOLUME else tx.snapshot(owner.id)
        if row is not None:
            here = seen_status(row.status, is_open=bool(row.attachments))
            news.append((kind, row.id, row.project_id, ERROR if is_missing else here))
    return news
