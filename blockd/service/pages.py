"""Pages of lists as they were rendered last, for as long as nothing in them can have changed.

Clients poll. Between two commits rows do not change, and what else a page shows is which devices
are open, which the kernel tells for the price of an ioctl. So a page of 100 asked again costs
little more than one of 10, whatever the catalog holds (figures: docs/benchmarks.md).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from blockd.catalog import Catalog, Transaction

Item = TypeVar("Item")

#: At most so many pages are kept: some megabytes.
_MOST = 64


@dataclass(frozen=True, slots=True)
class _Page:
    generation: int
    fronts: frozenset[tuple[str, str]]
    open_fronts: frozenset[tuple[str, str]]
    missing: Hashable
    text: str


class Pages(Generic[Item]):
    """The remembered pages of one kind of resource."""

    def __init__(
        self,
        catalog: Catalog,
        is_open: Callable[[str, str], bool],
        missing: Callable[[], Hashable],
    ) -> None:
        """`is_open` is asked with a storage class and a volume's id.

        Args:
            missing: what else shows in rows and is no row.
        """
        self._catalog, self._is_open, self._missing = catalog, is_open, missing
        self._pages: OrderedDict[Hashable, _Page] = OrderedDict()

    async def text(
        self,
        key: Hashable,
        query: Callable[[Transaction], tuple[list[Item], int]],
        fronts_of: Callable[[Sequence[Item]], Collection[tuple[str, str]]],
        render: Callable[[Sequence[Item], int, frozenset[tuple[str, str]]], str],
    ) -> str:
        """The page that `key` stands for.

        Args:
            query: the rows, and how many match in all.
            fronts_of: the fronts (class, volume id) whose being open shows in the page.
            render: the text of rows and total, given which of these fronts are open.
        """
        known = self._pages.get(key)
        if known is not None and self._holds(known):
            self._pages.move_to_end(key)
            return known.text
        generation, missing = self._catalog.generation, self._missing()
        rows, total = await self._catalog.read(query)
        fronts = frozenset(fronts_of(rows))
        open_fronts = self._open(fronts)
        text = render(rows, total, open_fronts)
        self._pages[key] = _Page(generation, fronts, open_fronts, missing, text)
        while len(self._pages) > _MOST:
            self._pages.popitem(last=False)
        return text

    def _holds(self, page: _Page) -> bool:
        return (
            page.generation == self._catalog.generation
            and page.missing == self._missing()
            and self._open(page.fronts) == page.open_fronts
        )

    def _open(self, fronts: Collection[tuple[str, str]]) -> frozenset[tuple[str, str]]:
        return frozenset(front for front in fronts if self._is_open(*front))
