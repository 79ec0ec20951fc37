"""Tables and detail pages: coloured and fitted on a terminal, plain and whole elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .client import Resource
from .text import clean, width

if TYPE_CHECKING:
    from rich.console import Console

GAP = 2
MIN_FLEXIBLE = 8

STATUS_STYLES = {
    "available": "green",
    "ok": "green",
    "rw": "green",
    "in_use": "cyan",
    "succeeded": "green",
    "failed": "bold red",
    "cancelled": "dim",
    "error": "bold red",
    "degraded": "bold red",
    "out_of_data_space": "bold red",
    "out_of_metadata_space": "bold red",
    "read_only": "bold red",
    "needs_check": "bold red",
    "transaction_id": "bold red",
    "inactive": "bold red",
    "deleted": "dim",
}

#: The lines of a detail page that its status colours.
STATUS_LABELS = ("Status", "Problem", "Error", "Fixed", "Not fixed", "Reason")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        value: the cell's text, not yet cleaned.
        right: numbers, aligned on the right.
        flexible: may be cut with an ellipsis where the terminal is narrow.
        coloured: by `STATUS_STYLES`.
        wide: columns the terminal must have for this one to be shown; 0 is always. Where
            stdout is no terminal every column is shown.
        terminal_only: for the eye; a script has the numbers.
    """

    title: str
    value: Callable[[Resource], str]
    right: bool = False
    flexible: bool = False
    coloured: bool = False
    wide: int = 0
    terminal_only: bool = False


def print_table(columns: Sequence[Column], items: Sequence[Resource]) -> None:
    """Write a table with a header to stdout."""
    if not sys.stdout.isatty():
        shown = [c for c in columns if not c.terminal_only]
        _print_plain(shown, [[clean(c.value(i)) or "-" for c in shown] for i in items])
        return
    console = _console()
    shown = [c for c in columns if c.wide <= console.width]
    _print_rich(console, shown, [[clean(c.value(i)) or "-" for c in shown] for i in items])


def print_details(fields: Sequence[tuple[str, str]], status: str = "") -> None:
    """Write `label  value` lines; empty values are left out. `status` colours `STATUS_LABELS`."""
    present = [(label, clean(value)) for label, value in fields if value]
    label_width = max(len(label) for label, _ in present) + GAP
    if not sys.stdout.isatty():
        for label, value in present:
            print(f"{label:{label_width}}{value}")
        return
    from rich.text import Text  # noqa: PLC0415

    console = _console()
    for label, value in present:
        style = STATUS_STYLES.get(status, "") if label in STATUS_LABELS else ""
        line = Text.assemble((f"{label:{label_width}}", "bold"), (value, style))
        console.print(line, soft_wrap=True)


def _console() -> Console:
    from rich.console import Console  # noqa: PLC0415 - slow to import, for terminals alone

    return Console(highlight=False, markup=False, emoji=False)


def _print_plain(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    lines = [[c.title for c in columns], *rows]
    widths = _widths(lines)
    for line in lines:
        cells = [
            " " * (w - width(cell)) + cell if c.right else cell + " " * (w - width(cell))
            for c, cell, w in zip(columns, line, widths, strict=True)
        ]
        print((" " * GAP).join(cells).rstrip())


def _print_rich(console: Console, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    widths = _fit(columns, _widths([[c.title for c in columns], *rows]), console.width)
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    for column, cells in zip(columns, widths, strict=True):
        table.add_column(
            column.title, width=cells, no_wrap=True, justify="right" if column.right else "left"
        )
    for row in rows:
        table.add_row(
            *(
                Text(cell, STATUS_STYLES.get(cell, "yellow") if c.coloured else "")
                for c, cell in zip(columns, row, strict=True)
            )
        )
    # A terminal narrower than the ids wraps; an id is never cut.
    console.width = max(console.width, sum(widths) + GAP * len(widths))
    console.print(table)


def _widths(lines: Sequence[Sequence[str]]) -> list[int]:
    return [max(width(cell) for cell in column) for column in zip(*lines, strict=True)]


def _fit(columns: Sequence[Column], widths: list[int], available: int) -> list[int]:
    """Take what is too much from the widest flexible column, one by one."""
    widths = list(widths)
    flexible = [i for i, c in enumerate(columns) if c.flexible]
    while flexible and sum(widths) + GAP * (len(widths) - 1) > available:
        widest = max(flexible, key=lambda i: widths[i])
        if widths[widest] <= MIN_FLEXIBLE:
            break
        widths[widest] -= 1
    return widths
