"""`blockctl pool`, `health` and `version`: questions about the host."""

from __future__ import annotations

import sys

import typer

from blockd import __version__

from .client import Resource
from .failures import Code, Failure
from .session import Session, session_of
from .tables import Column, print_details
from .text import age, clean, percent

BAR_CELLS = 10


def pool(ctx: typer.Context) -> None:
    """Show the pools, and how full they are."""
    session = session_of(ctx)
    items = session.client.get("/host/v1/pools")["pools"]
    session.out.listing(items, _pool_columns(session), "name")


def health(ctx: typer.Context) -> None:
    """Tell how the daemon does; exit code 1 if degraded."""
    session = session_of(ctx)
    answer = session.client.health()
    if not session.out.value(answer, answer["status"]):
        pools = [
            f"{p['name']}: data {percent(p['used'], p['size'])},"
            f" metadata {percent(p['metadata_used'], p['metadata_size'])}"
            for p in answer["pools"]
        ]
        print_details(
            [
                ("Status", answer["status"]),
                *(("Problem", problem) for problem in answer["problems"]),
                ("Version", answer["version"]),
                ("Zone", answer["zone"]),
                *(("Pool", line) for line in pools),
                *(("Catalog copy", _copy_line(copy)) for copy in answer.get("catalog_copies", [])),
                ("Under way", f"{answer['queued']} operations"),
            ],
            answer["status"],
        )
    if answer["status"] != "ok":
        raise typer.Exit(Code.FAILED)


def _copy_line(copy: Resource) -> str:
    if copy["written_at"] is None:
        return f"{copy['class']}: none"
    behind = f", {copy['behind']:.0f} s behind" if copy["behind"] >= 1 else ""
    return f"{copy['class']}: written {age(copy['written_at'])} ago{behind}"


def version(ctx: typer.Context) -> None:
    """Print the versions of blockctl and blockd."""
    session = session_of(ctx)
    daemon, why = None, ""
    try:
        daemon = session.client.health()["version"]
    except Failure as failure:
        why = failure.text
    if session.out.value({"blockctl": __version__, "blockd": daemon}, __version__):
        return
    print(f"blockctl  {__version__}")
    print(f"blockd    {clean(daemon or 'not known')}")
    if why:
        print(f"blockctl: {clean(why)}", file=sys.stderr)


def bar(used: int, size: int) -> str:
    """A share as ten cells: `████░░░░░░`; ASCII where the terminal knows no more."""
    full, empty = "█░" if "utf" in (sys.stdout.encoding or "").lower() else "#."
    cells = min(BAR_CELLS, -(-used * BAR_CELLS // size)) if size > 0 else 0
    return full * cells + empty * (BAR_CELLS - cells)


def _pool_columns(session: Session) -> list[Column]:
    def data_bar(p: Resource) -> str:
        return bar(p["used"], p["size"])

    def metadata(p: Resource) -> str:
        return percent(p["metadata_used"], p["metadata_size"])

    def mode(p: Resource) -> str:
        return f"{p['mode']}, needs check" if p["needs_check"] else str(p["mode"])

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
        Column("MODE", mode, coloured=True),
    ]
