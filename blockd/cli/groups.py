"""`blockctl group …`: snapshots of several volumes at one instant."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from .failures import Code, Failure
from .options import VolumeRefs
from .resolve import SNAPSHOT, VOLUME, find, remember
from .resources import ID, NAME, STATUS, size_column
from .session import session_of
from .snapshots import OF

app = typer.Typer(help="Snapshots of several volumes at one instant.", no_args_is_help=True)

#: The daemon answers when they are taken, which is soon or, where it has much to do, after a while.
_PATIENCE_S = 120.0


class Quiesce(StrEnum):
    """What the API knows."""

    AUTO = "auto"
    REQUIRE = "require"
    NONE = "none"


@app.command()
def snapshot(
    ctx: typer.Context,
    volumes: VolumeRefs,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="They are called NAME-1, NAME-2, and so on."),
    ] = None,
    quiesce: Annotated[
        Quiesce, typer.Option("--quiesce", help="Whether guests are frozen for it.")
    ] = Quiesce.AUTO,
) -> None:
    """Take snapshots of volumes at one instant, in the order named: all of them, or none."""
    session = session_of(ctx)
    ids = [find(session, VOLUME, volume)["id"] for volume in volumes]
    body: dict[str, Any] = {"volume_ids": ids, "quiesce": quiesce.value}
    body |= session.project_body()
    if name is not None:
        body["name"] = name
    group = session.client.post("/host/v1/groups/snapshots", body, timeout_s=_PATIENCE_S)
    for item in group["snapshots"]:
        remember(session, SNAPSHOT, item)
    taken = len(group["snapshots"])
    if group["suspended_ms"] is None:
        raise Failure(
            Code.TIMED_OUT,
            f"{taken} snapshots are still to be taken: it goes on in the daemon: "
            f"blockctl snapshot show {group['snapshots'][0]['name']}",
        )
    if session.out.json:
        session.out.value(group, "")
        return
    columns = [NAME, OF, size_column(session.out, wide=90), STATUS, ID]
    session.out.listing(group["snapshots"], columns, "id")
    if session.out.for_people:
        still = f"their volumes stood still {group['suspended_ms']} ms"
        print(f"{taken} snapshots of one instant; {still}")
