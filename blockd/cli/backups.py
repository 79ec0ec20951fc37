"""`blockctl backup …`: of what LVM and thin pools know, not of the volumes' bytes."""

from __future__ import annotations

from typing import Annotated

import typer

from .client import Resource
from .session import Session, session_of
from .tables import Column
from .text import age

app = typer.Typer(
    help="Backups of what LVM and thin pools know (no volumes' bytes).", no_args_is_help=True
)

#: Mappings of a large pool take a while to read.
_PATIENCE_S = 3600.0


@app.command("list")
def list_(ctx: typer.Context) -> None:
    """Show the backups that are kept, and where."""
    session = session_of(ctx)
    items: list[Resource] = []
    for page in range(1, 1000):
        answer = session.client.get("/host/v1/backups", [("page", str(page)), ("page_size", "100")])
        items += answer["backups"]
        if len(items) >= answer["total_count"] or not answer["backups"]:
            break
    session.out.listing(items, _columns(session), "number")


@app.command("now")
def now(
    ctx: typer.Context,
    storage_class: Annotated[
        str | None, typer.Option("--class", metavar="CLASS", help="Of this class alone.")
    ] = None,
) -> None:
    """Take a backup, and wait until it is safe."""
    session = session_of(ctx)
    body = {} if storage_class is None else {"class": storage_class}
    answer = session.client.post("/host/v1/backups", body, timeout_s=_PATIENCE_S)
    session.out.listing(answer["backups"], _columns(session), "number")


def _columns(session: Session) -> list[Column]:
    size = session.out.size
    return [
        Column("NUMBER", lambda b: str(b["number"]), right=True),
        Column("CLASS", lambda b: b["class"]),
        Column("AGE", lambda b: age(b["taken_at"])),
        Column("SIZE", lambda b: size(sum(file["size"] for file in b["files"])), right=True),
        Column("FILES", lambda b: " ".join(file["path"] for file in b["files"])),
    ]
