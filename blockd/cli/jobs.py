"""`blockctl job …`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from blockd.domain.units import format_size

from .client import Query, Resource
from .complete import job_ids
from .failures import Code, Failure, usage
from .options import Limit, Wait, duration_s, limit_of
from .resolve import UUID
from .session import Session, session_of
from .tables import Column, print_details
from .text import age, instant, quoted
from .transfers import Patience
from .volume_jobs import subject, subjects
from .watch import follow, moved

app = typer.Typer(help="Long work: exports, imports, thick volumes.", no_args_is_help=True)

MOST_LISTED = 20
LEAST_PREFIX = 8

JobRef = Annotated[
    str,
    typer.Argument(
        metavar="JOB",
        help="Its id, or the first 8 characters or more of it.",
        autocompletion=job_ids,
    ),
]


class Kind(StrEnum):
    """What a job does."""

    EXPORT = "export"
    IMPORT = "import"
    VERIFY = "verify"
    CREATE = "create"
    CLONE = "clone"
    GROW = "grow"
    REVERT = "revert"


class State(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@app.command("list")
def list_(
    ctx: typer.Context,
    kind: Annotated[Kind | None, typer.Option("--kind", help="Only of this kind.")] = None,
    state: Annotated[State | None, typer.Option("--state", help="All in this state.")] = None,
    limit: Limit = None,
    everything: Annotated[bool, typer.Option("--all", help="All that are remembered.")] = False,
) -> None:
    """List jobs, the latest first: those under way, and the latest 20."""
    session = session_of(ctx)
    query = session.project_query()
    query += [(name, str(value)) for name, value in (("kind", kind), ("state", state)) if value]
    most = limit_of(limit)
    if most or everything or state:
        jobs = list(session.client.each("/host/v1/jobs", "jobs", query, most))
    else:
        jobs = _latest(session, query)
    about = subjects(session, jobs)
    columns = [
        Column("KIND", lambda j: str(j["kind"])),
        Column("OBJECT", lambda j: about[j["id"]], flexible=True),
        Column("STATE", lambda j: str(j["state"]), coloured=True),
        Column("DONE", _done, right=True),
        Column("AGE", lambda j: age(j["created_at"]), right=True, terminal_only=True),
        Column("ID", lambda j: str(j["id"])),
    ]
    session.out.listing(jobs, columns, "id")


@app.command()
def show(ctx: typer.Context, job: JobRef) -> None:
    """Show all that is known of a job."""
    session = session_of(ctx)
    found = _find(session, job)
    if session.out.value(found, found["id"]):
        return
    rate, eta = found["rate"], found["eta"]
    print_details(
        [
            ("Job", found["id"]),
            ("Kind", found["kind"]),
            ("Object", subject(session, found)),
            ("Volume", found["volume_id"] or ""),
            ("Snapshot", found["snapshot_id"] or ""),
            ("Status", found["state"]),
            ("Error", found["error"] or ""),
            ("Done", _done(found)),
            ("Rate", f"{format_size(rate)}/s" if rate else ""),
            ("Left", f"{eta} s" if eta is not None else ""),
            ("Attempt", str(found["attempt"]) if found["attempt"] > 1 else ""),
            ("Digest", found["content_digest"] or ""),
            ("Created", instant(found["created_at"])),
            ("Ended", instant(found["finished_at"]) if found["finished_at"] else ""),
        ],
        found["state"],
    )


@app.command()
def wait(ctx: typer.Context, job: JobRef, timeout: Patience = None) -> None:
    """Wait until a job has ended."""
    session = session_of(ctx)
    found = _find(session, job)
    doing = f"{found['kind']} of {subject(session, found)}"
    patience_s = None if timeout is None else duration_s(timeout)
    found = follow(session, found, doing, patience_s)
    session.out.resource(found, f"{doing} succeeded: {moved(found)}")


@app.command()
def cancel(ctx: typer.Context, job: JobRef, wait: Wait = True) -> None:
    """End a job, and undo what it has done."""
    session = session_of(ctx)
    found = _find(session, job)
    doing = f"{found['kind']} of {subject(session, found)}"
    found = session.client.post(f"/host/v1/jobs/{found['id']}/cancel", {})
    if wait:
        try:
            found = follow(session, found, doing, None)
        except Failure:
            found = session.client.get(f"/host/v1/jobs/{found['id']}")
            if found["state"] != "cancelled":
                raise
        else:
            raise Failure(Code.REFUSED, f"{doing} had ended before it could be cancelled")
    session.out.resource(found, f"{doing} {'is cancelled' if wait else 'is being cancelled'}")


def _latest(session: Session, query: Query) -> list[Resource]:
    """The latest, and of those before them the ones that are under way."""
    jobs = list(session.client.each("/host/v1/jobs", "jobs", query, MOST_LISTED))
    if len(jobs) < MOST_LISTED:
        return jobs
    found = {job["id"]: job for job in jobs}
    # In the order in which a job goes on, so that none slips through between two answers.
    for state in (State.QUEUED, State.RUNNING):
        under_way = session.client.each("/host/v1/jobs", "jobs", [*query, ("state", state.value)])
        found |= {job["id"]: job for job in under_way}
    return sorted(found.values(), key=lambda job: str(job["created_at"]), reverse=True)


def _done(job: Resource) -> str:
    total = job["bytes_total"]
    if total is None:
        return "-"
    done = job["bytes_done"]
    return f"{format_size(done)}" if done == total else f"{done * 100 // max(total, 1)} %"


def _find(session: Session, text: str) -> Resource:
    """The job that an id, or the beginning of one, means. Raises Failure."""
    if UUID.fullmatch(text):
        return session.client.get(f"/host/v1/jobs/{text.lower()}")
    if len(text) < LEAST_PREFIX:
        raise usage(f"{text}: write the first {LEAST_PREFIX} characters of a job's id, or more")
    jobs = session.client.each("/host/v1/jobs", "jobs", session.project_query())
    found = [job for job in jobs if str(job["id"]).startswith(text.lower())]
    if not found:
        raise Failure(Code.NOT_FOUND, f"there is no job {quoted(text)}: blockctl job list")
    if len(found) > 1:
        raise usage(f"{len(found)} jobs begin with {text}: write more of the id")
    return found[0]
