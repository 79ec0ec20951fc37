"""How values read on a terminal: names made harmless, widths, ages."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime

from blockd.domain.units import parse_timestamp


def clean(text: str) -> str:
    r"""`text` with all that is not printable written as an escape (`\x1b`, `\u202e`).

    A name or a tag is anybody's text: no escape sequence, line break or direction mark of it may
    reach a terminal or forge a row.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def quoted(name: object) -> str:
    """A name inside a sentence: `"data"`."""
    return f'"{clean(str(name))}"'


def width(text: str) -> int:
    """Terminal columns that `text` takes: wide characters two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def age(timestamp: str) -> str:
    """How long ago an API timestamp was: `12s`, `5m`, `3h`, `2d`, `8w`, `2y`."""
    try:
        then = parse_timestamp(timestamp)
    except ValueError:
        return clean(timestamp)
    return span((datetime.now(UTC) - then).total_seconds())


def span(seconds: float) -> str:
    """A duration: `12s`, `5m`, `3h`, `2d`, `8w`, `2y`."""
    whole = max(0, int(seconds))
    for unit, length_s, until_s in (
        ("s", 1, 60),
        ("m", 60, 3600),
        ("h", 3600, 2 * 86_400),
        ("d", 86_400, 14 * 86_400),
        ("w", 7 * 86_400, 2 * 365 * 86_400),
    ):
        if whole < until_s:
            return f"{whole // length_s}{unit}"
    return f"{whole // (365 * 86_400)}y"


def instant(timestamp: str | None) -> str:
    """An API timestamp to the second: `2026-08-17 13:11:16 UTC (3h ago)`."""
    if not timestamp:
        return "-"
    return f"{timestamp[:19].replace('T', ' ')} UTC ({age(timestamp)} ago)"


def percent(used: int, size: int) -> str:
    """`42%`; below one percent and above zero `<1%`, so that it never looks empty or full."""
    if size <= 0:
        return "-"
    if 0 < used * 100 < size:
        return "<1%"
    return f"{used * 100 // size}%"
