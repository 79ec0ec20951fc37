"""Options and arguments that several commands share, with one wording each."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from blockd.domain.units import parse_duration_s, parse_size

from .complete import snapshot_names, volume_names
from .failures import usage

VolumeRef = Annotated[
    str, typer.Argument(metavar="VOL", help="Name or id.", autocompletion=volume_names)
]
SnapshotRef = Annotated[
    str, typer.Argument(metavar="SNAP", help="Name or id.", autocompletion=snapshot_names)
]
VolumeRefs = Annotated[
    list[str], typer.Argument(metavar="VOL...", help="Names or ids.", autocompletion=volume_names)
]
SnapshotRefs = Annotated[
    list[str],
    typer.Argument(metavar="SNAP...", help="Names or ids.", autocompletion=snapshot_names),
]
NewName = Annotated[str, typer.Argument(metavar="NEW", help="The new name.")]

Wait = Annotated[
    bool, typer.Option("--wait/--no-wait", help="Return when it is done, or as soon as it began.")
]
Timeout = Annotated[
    str, typer.Option("--timeout", metavar="DURATION", help="How long to wait: 30s, 5m, 1h.")
]
LongTimeout = Annotated[
    str | None,
    typer.Option(
        "--timeout",
        metavar="DURATION",
        help="How long to wait; else 5m, or until it ends where a disk is written over.",
    ),
]
Tags = Annotated[list[str], typer.Option("--tag", metavar="T", help="A tag; may be repeated.")]
AddTags = Annotated[list[str], typer.Option("--add", metavar="T", help="Add a tag; repeatable.")]
RemoveTags = Annotated[
    list[str], typer.Option("--remove", metavar="T", help="Remove a tag; repeatable.")
]
ClearTags = Annotated[bool, typer.Option("--clear", help="Remove all tags first.")]

NamePrefix = Annotated[
    str | None, typer.Option("--name", metavar="PREFIX", help="Only names that begin so.")
]
AnyTag = Annotated[
    list[str], typer.Option("--tag", metavar="T", help="Only with this tag; repeated: any of them.")
]
Deleted = Annotated[bool, typer.Option("--deleted", help="Also what is deleted, not yet erased.")]
Reverse = Annotated[bool, typer.Option("--reverse", help="Last first.")]
Limit = Annotated[str | None, typer.Option("--limit", metavar="N", help="At most N of them.")]


class Sort(StrEnum):
    """Orders of a list."""

    CREATED = "created"
    NAME = "name"


class Iops(StrEnum):
    """The performance a volume can have (wire.md, b)."""

    LOW = "5000"
    HIGH = "15000"


SortBy = Annotated[Sort, typer.Option("--sort", help="The order.")]


def size_bytes(text: str) -> int:
    """Bytes of a size argument. Raises Failure."""
    try:
        return parse_size(text)
    except ValueError as err:
        raise usage(str(err)) from None


def duration_s(text: str) -> float:
    """Seconds of a duration argument. Raises Failure."""
    try:
        return parse_duration_s(text)
    except ValueError as err:
        raise usage(str(err)) from None


def limit_of(text: str | None) -> int | None:
    """The number of `--limit`. Raises Failure."""
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise usage(f"--limit {text}: write a number from 1")
    return int(text)
