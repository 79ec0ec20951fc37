"""`blockctl pool …`: room, and what is the matter with it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from blockd.domain.units import format_size

from .client import Resource
from .failures import Code, Failure
from .session import Session, session_of
from .tables import Column, print_details
from .text import percent, quoted, span

app = typer.Typer(
    help="Pools: how full they are, and when they will be.", invoke_without_command=True
)

BAR_CELLS = 10
#: thin_check reads all of the metadata.
_REPAIR_S = 900.0

PoolRef = Annotated[
    str | None,
    typer.Argument(metavar="[POOL]", help="Its class, or its name; the only one if left out."),
]


@app.callback()
def pool(ctx: typer.Context) -> None:
    """List the pools, if nothing else is asked."""
    if ctx.invoked_subcommand is None:
        list_(ctx)


@app.command("list")
def list_(ctx: typer.Context) -> None:
    """List the pools, how full they are, and when they will be."""
    session = session_of(ctx)
    session.out.listing(_all(session), _columns(session), "name")


@app.command()
def show(ctx: typer.Context, pool: PoolRef = None) -> None:
    """Show all that is known of a pool; whether it can be extended, and why not."""
    session = session_of(ctx)
    found = find(session, pool)
    if session.out.value(found, found["name"]):
        return
    size = session.out.size
    extension = found["extension"]
    rate = found["fill_rate"]
    metadata = found["metadata_size"]
    print_details(
        [
            ("Pool", found["name"]),
            ("Class", found["class"]),
            ("Status", state_of(found)),
            ("Data", _share(session, found["used"], found["size"])),
            ("Metadata", _share(session, found["metadata_used"], metadata) if metadata else ""),
            ("Free", "" if found["free"] is None else size(found["free"])),
            ("Group free", "" if found["group_free"] is None else size(found["group_free"])),
            ("Extension", "would work" if extension["works"] else f"no: {extension['reason']}"),
            ("Can grow by", size(found["addable"]) if found["addable"] else ""),
            ("Fills by", f"{format_size(rate)}/s" if rate and rate > 0 else ""),
            ("Full in", _full_in(found)),
            ("When full", _WHEN_FULL.get(found["when_full"], "")),
        ],
        state_of(found),
    )


@app.command()
def repair(ctx: typer.Context, pool: PoolRef = None) -> None:
    """Have LVM check the metadata of a pool in trouble, and take it up again.

    Nobody may use a volume of it meanwhile. Nothing is removed; what LVM cannot vouch for it
    refuses, and docs/pool-trouble.md says what a person can do.
    """
    session = session_of(ctx)
    found = find(session, pool)
    path = f"/host/v1/pools/{found['class']}/repair"
    after = session.client.post(path, {}, timeout_s=_REPAIR_S)
    if not session.out.value(after, after["name"]):
        print(f"pool {after['name']} is {state_of(after)}")


def find(session: Session, name: str | None) -> Resource:
    """The pool of that class or name; the only one for None.

    Raises:
        Failure: there is none, or more than one.
    """
    pools = _all(session)
    if name is None and len(pools) == 1:
        return pools[0]
    known = ", ".join(p["class"] for p in pools)
    if name is None:
        raise Failure(Code.USAGE, f"say which pool: {known}")
    for found in pools:
        if name in (found["class"], found["name"]):
            return found
    raise Failure(Code.NOT_FOUND, f"there is no pool {quoted(name)}: {known}")


def state_of(pool: Resource) -> str:
    """One word: its trouble, or its mode."""
    return str(pool["trouble"] or pool["mode"])


def bar(used: int, size: int) -> str:
    """A share as ten cells: `████░░░░░░`; ASCII where the terminal knows no more."""
    full, empty = "█░" if "utf" in (sys.stdout.encoding or "").lower() else "#."
    cells = min(BAR_CELLS, -(-used * BAR_CELLS // size)) if size > 0 else 0
    return full * cells + empty * (BAR_CELLS - cells)


_WHEN_FULL = {"queue": "writes wait, and fail after a minute", "error": "writes fail"}


def _all(session: Session) -> list[Resource]:
    pools: list[Resource] = session.client.get("/host/v1/pools")["pools"]
    return pools


def _share(session: Session, used: int, whole: int) -> str:
    size = session.out.size
    return f"{size(used)} of {size(whole)} ({percent(used, whole)})"


def _full_in(pool: Resource) -> str:
    """The sooner of data and metadata."""
    times = [pool[key] for key in ("full_in", "metadata_full_in") if pool[key] is not None]
    return span(min(times)) if times else ""


def _columns(session: Session) -> list[Column]:
    def data_bar(p: Resource) -> str:
        return bar(p["used"], p["size"])

    def metadata(p: Resource) -> str:
        return percent(p["metadata_used"], p["metadata_size"])

    def grows(p: Resource) -> str:
        return "yes" if p["extension"]["works"] else "no"

    size = session.out.size
    return [
        Column("POOL", lambda p: p["name"], flexible=True),
        Column("CLASS", lambda p: p["class"]),
        Column("SIZE", lambda p: size(p["size"]), right=True),
        Column("", data_bar, terminal_only=True),
        Column("DATA", lambda p: percent(p["used"], p["size"]), right=True),
        Column("USED", lambda p: size(p["used"]), right=True),
        Column("META", metadata, right=True),
        Column("META SIZE", lambda p: size(p["metadata_size"]), right=True, wide=100),
        Column("GROWS", grows, wide=100),
        Column("FULL IN", _full_in, right=True),
        Column("MODE", state_of, coloured=True),
    ]
