"""LVM's own text of a volume group: what no report of LVM tells, messages that a pool still awaits.

Pure: tested on text that LVM 2.03.16 wrote. Source: lvm2, lib/format_text/export.c and
lib/thin/thin.c: sections in braces, and values that are strings, numbers, or lists of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final, TypeVar

from blockd.domain.errors import StorageError

Kind = TypeVar("Kind")

_TOKEN: Final = re.compile(r'(?:\s|#[^\n]*)*("(?:[^"\\]|\\.)*"|[\w.+-]+|[{}\[\]=,]|$)')


@dataclass(frozen=True, slots=True)
class ThinLv:
    """A thin LV as the text has it.

    Attributes:
        device_id: its number within the pool.
        transaction_id: the pool's, before this LV was made.
    """

    name: str
    device_id: int
    transaction_id: int
    tags: frozenset[str]


@dataclass(frozen=True, slots=True)
class PoolText:
    """A thin pool as the text has it.

    Attributes:
        transaction_id: what the kernel's will be once it has had all messages.
        awaited: names of the LVs that the kernel has still to be told to make.
        lvs: the pool's.
        removed: numbers of devices that the kernel has still to be told to remove.
    """

    transaction_id: int
    awaited: tuple[str, ...]
    lvs: tuple[ThinLv, ...]
    removed: tuple[int, ...] = ()

    def cut_short(self, kernel_transaction_id: int) -> list[ThinLv]:
        """The LVs whose making was cut short, so that nobody was ever told that they exist.

        LVM writes an LV down together with the message that it owes the kernel; it takes the
        message away, and ends, when the kernel's transaction id has followed.
        """
        if self.transaction_id != kernel_transaction_id + 1:
            return []
        return [
            lv
            for lv in self.lvs
            if lv.name in self.awaited
            and lv.transaction_id == kernel_transaction_id
            and [other.device_id for other in self.lvs].count(lv.device_id) == 1
        ]

    def has_heard(self, kernel_transaction_id: int) -> bool:
        """Whether messages stand there that the kernel has had, all of them."""
        is_owed = bool(self.awaited or self.removed)
        return is_owed and self.transaction_id == kernel_transaction_id

    def owed_removals(self, kernel_transaction_id: int) -> tuple[int, ...]:
        """The devices whose LVs are gone for good, and that the kernel has still to let go of.

        None where LVM owes it something else as well: that is for LVM to put in order.
        """
        is_behind = self.transaction_id == kernel_transaction_id + 1
        is_all = not self.awaited and not {lv.device_id for lv in self.lvs} & {*self.removed}
        return self.removed if is_behind and is_all else ()


def parse_pool(text: bytes, pool: str) -> PoolText:
    """A pool, out of what `vgcfgbackup` writes.

    Raises:
        StorageError: it is not what LVM writes, or has no such pool.
    """
    try:
        (vg,) = _parse(text.decode()).sections().values()
    except ValueError as err:
        raise StorageError(f"LVM's text of the volume group cannot be read: {err}") from err
    lvs = vg.section("logical_volumes").sections()
    segment = lvs.get(pool, _Section()).section("segment1")
    messages = [part for name, part in segment.sections().items() if name.startswith("message")]
    return PoolText(
        segment.number("transaction_id"),
        tuple(part.text("create") for part in messages if "create" in part),
        tuple(_thin_lvs(lvs, pool)),
        tuple(part.number("delete") for part in messages if "delete" in part),
    )


def _thin_lvs(lvs: dict[str, _Section], pool: str) -> Iterator[ThinLv]:
    for name, lv in lvs.items():
        segment = lv.section("segment1")
        if segment.get("thin_pool") == pool:
            tags = lv.get("tags", [])
            yield ThinLv(
                name,
                segment.number("device_id"),
                segment.number("transaction_id"),
                frozenset(map(str, tags)) if isinstance(tags, list) else frozenset(),
            )


class _Section(dict[str, object]):
    """What is between braces. Raises StorageError where something that must be there is not."""

    def section(self, name: str) -> _Section:
        return self._get(name, _Section)

    def text(self, name: str) -> str:
        return self._get(name, str)

    def number(self, name: str) -> int:
        return self._get(name, int)

    def sections(self) -> dict[str, _Section]:
        return {name: value for name, value in self.items() if isinstance(value, _Section)}

    def _get(self, name: str, kind: type[Kind]) -> Kind:
        value = self.get(name)
        if not isinstance(value, kind):
            raise StorageError(f"LVM's text of the volume group has no {name} where one must be")
        return value


def _parse(text: str) -> _Section:
    """The whole text. Raises ValueError at what is not the language."""
    return _section(_tokens(text), end="")


def _tokens(text: str) -> Iterator[str]:
    at = 0
    while True:
        found = _TOKEN.match(text, at)
        if found is None:
            raise ValueError(f"{text[at : at + 40]!r}")
        yield found[1]
        if not found[1]:
            return
        at = found.end()


def _section(tokens: Iterator[str], end: str) -> _Section:
    section = _Section()
    for name in tokens:
        if name == end:
            return section
        match next(tokens, ""):
            case "{":
                section[name] = _section(tokens, "}")
            case "=":
                section[name] = _value(tokens)
            case other:
                raise ValueError(f"{name!r} is followed by {other!r}")
    raise ValueError("it ends in the middle")


def _value(tokens: Iterator[str]) -> object:
    word = next(tokens, "")
    if word == "[":
        return _list(tokens)
    if word.startswith('"'):
        return re.sub(r"\\(.)", r"\1", word[1:-1])
    return int(word)


def _list(tokens: Iterator[str]) -> list[object]:
    items: list[object] = []
    for word in tokens:
        if word == "]":
            break
        if word != ",":
            items.append(_value(chain([word], tokens)))
    return items
