"""The history of all resources, for those who follow it: the catalog's, and woken by commits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from blockd.catalog import Catalog, Transaction
from blockd.domain.errors import Unavailable
from blockd.domain.event import Event, EventFilter, EventKind, Place
from blockd.domain.states import Status
from blockd.service.classes import StorageClasses
from blockd.service.missing_told import SEEN_IN_ERROR

#: Each holds a connection, and reads the catalog after each commit.
_MOST_FOLLOWERS: Final = 64
#: Read at once: some 100 KB as JSON.
_MOST_READ: Final = 256


@dataclass(frozen=True, slots=True)
class News:
    """What happened since a place.

    Attributes:
        place: up to where it tells; what is not wanted is passed over.
        missed: something between is no longer known, and nothing of it told: list all anew.
        is_all: there is no more just now.
    """

    events: Sequence[Event]
    place: Place
    missed: bool = False
    is_all: bool = True


class Events:
    """Who follows holds nothing here but an `asyncio.Event`, set whenever there may be more."""

    def __init__(self, catalog: Catalog, classes: StorageClasses) -> None:
        self._catalog, self._classes = catalog, classes
        self._followers: set[asyncio.Event] = set()
        catalog.told.append(self._wake)

    @property
    def followers(self) -> int:
        """How many follow just now."""
        return len(self._followers)

    @contextmanager
    def following(self) -> Iterator[asyncio.Event]:
        """An event that is set after each commit, for the length of the block.

        Raises:
            Unavailable: too many follow already.
        """
        if len(self._followers) >= _MOST_FOLLOWERS:
            raise Unavailable(f"{_MOST_FOLLOWERS} streams of events are open, which is the most")
        woken = asyncio.Event()
        self._followers.add(woken)
        try:
            yield woken
        finally:
            self._followers.discard(woken)

    async def since(self, place: Place | None, wanted: EventFilter) -> News:
        """What is wanted of what happened since `place`; nothing, and the end, if it is None.

        Raises:
            CatalogUnavailable: the catalog cannot be read.
        """

        def look(tx: Transaction) -> News:
            newest = tx.events.newest()
            if place is None:
                return News((), newest)
            if not tx.events.follows(place):
                return News((), newest, missed=True)
            found = tx.events.after(place.sequence, wanted, _MOST_READ)
            events = [self._seen(event) for event in found]
            if len(events) == _MOST_READ:
                return News(events, Place(place.history, events[-1].sequence), is_all=False)
            return News(events, newest)

        return await self._catalog.read(look)

    def _seen(self, event: Event) -> Event:
        """With the resource as a reader would see it: in error without its disk, or in use."""
        now = event.resource
        if now is None or now.storage_class is None or now.disk is None:
            return event
        if now.status not in SEEN_IN_ERROR[event.kind]:
            return event
        why = self._classes[now.storage_class].why_missing(now.disk)
        if why is not None:
            return replace(event, resource=replace(now, status=Status.ERROR, error=why))
        is_open = event.kind is EventKind.VOLUME and self._classes.is_open(
            now.storage_class, event.resource_id
        )
        if now.status != Status.AVAILABLE or not (now.is_attached or is_open):
            return event
        return replace(event, resource=replace(now, status=Status.IN_USE))

    async def oldest(self) -> Place:
        """The place before the first event that is known. Raises CatalogUnavailable."""
        return await self._catalog.read(lambda tx: tx.events.oldest())

    def _wake(self) -> None:
        for woken in self._followers:
            woken.set()
