"""`blockctl events`: what happened to volumes, snapshots and jobs, and what happens now."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Annotated

import typer

from .changes import FIRST_INTERVAL_S, GROWTH, LONGEST_INTERVAL_S
from .client import Resource
from .failures import Code, Failure, explain
from .options import Limit, limit_of
from .session import Session, session_of
from .stream import EventStream, StreamEnded, StreamRefused, Told
from .tables import Column
from .text import clean

MOST_SHOWN = 20
#: A daemon that does not come back within this time is not being restarted.
AWAY_S = 60.0
_LOOK_S = 3600.0
#: As `oldest` is understood by the daemon: all that it remembers.
_OLDEST = "oldest"
#: `snapshot.created`, `available`: lines that come one by one cannot be fitted to each other.
_WIDTHS = (19, 16, 9, 36)


def events(
    ctx: typer.Context,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print what happens from now on, until Ctrl-C.")
    ] = False,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="ID", help="Begin behind this event (its id: see --json)."),
    ] = None,
    limit: Limit = None,
    everything: Annotated[bool, typer.Option("--all", help="All that are remembered.")] = False,
) -> None:
    """Show what happened to volumes, snapshots and jobs: the latest 20, oldest first."""
    session = session_of(ctx)
    most = limit_of(limit)
    if follow:
        _follow(session, since or "")
        return
    shown = None if everything or (since and not most) else most or MOST_SHOWN
    told = _read(session, [("follow", "false")], since or _OLDEST)
    items = [one.data for one in deque(told, maxlen=shown)]
    session.out.listing(items, _columns(), "resource_id")


def _follow(session: Session, since: str) -> None:
    for number, told in enumerate(_read(session, [], since)):
        if session.out.json:
            line = json.dumps(told.data)
        elif session.out.quiet:
            line = clean(str(told.data["resource_id"]))
        else:
            if number == 0:
                print(_line([column.title for column in _columns()]))
            line = _line([clean(column.value(told.data)) or "-" for column in _columns()])
        print(line, flush=True)


def _read(session: Session, query: list[tuple[str, str]], last_id: str) -> Iterator[Told]:
    """Events from `last_id` on, over as many connections as it takes.

    Raises:
        Failure: the daemon tells none, cannot be reached, or has been away for too long.
    """
    query = [*query, *session.project_query()]
    heard_s, interval_s = time.monotonic(), FIRST_INTERVAL_S
    is_first = True
    while True:
        try:
            with EventStream(session.client.socket_path, query, last_id) as stream:
                is_first = False
                while True:
                    told = stream.next(_LOOK_S)
                    last_id = stream.last_id
                    heard_s, interval_s = time.monotonic(), FIRST_INTERVAL_S
                    if told is not None and told.name == "reset":
                        missed = "something was missed that is no longer remembered: list anew"
                        print(f"blockctl: {missed}", file=sys.stderr)
                    elif told is not None and told.name == "end":
                        return
                    elif told is not None and told.name:
                        yield told
        except StreamEnded as err:
            why = str(err)
        except StreamRefused as err:
            raise _refusal(err) from None
        except OSError as err:
            why = session.client.why_unreachable(err)
            if is_first:
                raise Failure(Code.UNREACHABLE, why) from err
        if time.monotonic() - heard_s > AWAY_S:
            raise Failure(Code.UNREACHABLE, why)
        time.sleep(interval_s)
        interval_s = min(interval_s * GROWTH, LONGEST_INTERVAL_S)


def _refusal(err: StreamRefused) -> Failure:
    if err.status == 404:
        return Failure(Code.FAILED, "this blockd is older and tells of no events: update it")
    return explain(err.status, err.body, {}, "")


def _columns() -> list[Column]:
    def name(event: Resource) -> str:
        return str((event["resource"] or {}).get("name") or "")

    return [
        Column("TIME", lambda e: str(e["at"])[:19].replace("T", " ")),
        Column("EVENT", lambda e: f"{e['kind']}.{e['what']}"),
        Column("STATUS", lambda e: str(e["status"]), coloured=True),
        Column("ID", lambda e: str(e["resource_id"])),
        Column("NAME", name, flexible=True),
    ]


def _line(cells: list[str]) -> str:
    fixed = [f"{cell:{width}}" for cell, width in zip(cells, _WIDTHS, strict=False)]
    return "  ".join([*fixed, cells[-1]]).rstrip()
