"""`blockctl group …`: snapshots of several volumes at one instant."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from blockd.domain.snapshot import Quiesce

from .options import Timeout, VolumeRefs, duration_s
from .resolve import SNAPSHOT, VOLUME, find, remember
from .resources import ID, NAME, STATUS, size_column
from .session import session_of
from .snapshots import OF
from .wait import finish

app = typer.Typer(help="Snapshots of several volumes at one instant.", no_args_is_help=True)

#: The daemon answers when they are taken, which is soon or, where it has much to do, after a while.
_PATIENCE_S = 120.0


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
    timeout: Timeout = "5m",
) -> None:
    """Take snapshots of volumes at one instant, in the order named: all of them, or none."""
    session = session_of(ctx)
    timeout_s = duration_s(timeout)
    ids = [find(session, VOLUME, volume)["id"] for volume in volumes]
    body: dict[str, Any] = {"volume_ids": ids, "quiesce": quiesce.value}
    body |= session.project_body()
    if name is not None:
        body["name"] = name
    group = session.client.post("/host/v1/groups/snapshots", body, timeout_s=_PATIENCE_S)
    for item in group["snapshots"]:
        remember(session, SNAPSHOT, item)
    taken = len(group["snapshots"])
    if group["suspended_ms"] is None:  # it has much to do, or was started anew meanwhile
        doing = f"taking {taken} snapshots of one instant"
        finish(session, SNAPSHOT, group["snapshots"][0], doing, timeout_s)
        group = session.client.get(f"/host/v1/groups/snapshots/{group['id']}")
    if session.out.json:
        session.out.value(group, "")
        return
    columns = [NAME, OF, size_column(session.out, wide=90), STATUS, ID]
    session.out.listing(group["snapshots"], columns, "id")
    if session.out.for_people:
        still = f"their volumes stood still {group['suspended_ms']} ms"
        print(f"{taken} snapshots of one instant; {still}")
