"""`blockctl snapshot export`, `import` and `verify`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from .client import Resource
from .failures import Code, Failure, usage
from .options import SnapshotRef, Tags, Wait, duration_s, size_bytes
from .resolve import SNAPSHOT, find, remember
from .resources import label
from .session import Session, session_of
from .watch import follow, moved, uri

Object = Annotated[
    str, typer.Argument(metavar="s3://BUCKET/KEY", help="The object; s3:// may be left out.")
]
Patience = Annotated[
    str | None,
    typer.Option("--timeout", metavar="DURATION", help="How long to wait; else until it ends."),
]


class Compression(StrEnum):
    """How clusters are packed."""

    NONE = "none"
    ZLIB = "zlib"
    ZSTD = "zstd"


def export(
    ctx: typer.Context,
    snapshot: SnapshotRef,
    target: Object,
    compression: Annotated[
        Compression,
        typer.Option("--compression", help="Every reader of QCOW2 knows zlib; zstd is quicker."),
    ] = Compression.NONE,
    wait: Wait = True,
    timeout: Patience = None,
) -> None:
    """Copy a snapshot to object storage, as a QCOW2 image."""
    session = session_of(ctx)
    found = find(session, SNAPSHOT, snapshot)
    body = {**_object(target), "compression": compression.value}
    path = session.client.block(f"/snapshots/{found['id']}/export-to-object-storage")
    session.client.post(path, body)
    job = _job_of(session, found, "export")
    name = label(SNAPSHOT, found)
    if not wait:
        session.out.resource(job, f"exporting {name} to {uri(job)}: job {job['id']}")
        return
    job = follow(session, job, f"export of {name}", _seconds(timeout))
    told = f"exported {name} to {uri(job)}: {moved(job)}, digest {job['content_digest'][:16]}"
    session.out.resource(job, told)


def import_(
    ctx: typer.Context,
    source: Object,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Without it, one is made up.")
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="SIZE", help="Larger than the image's.")
    ] = None,
    storage_class: Annotated[
        str | None, typer.Option("--class", metavar="CLASS", help="Where it is to lie.")
    ] = None,
    tags: Tags = [],  # noqa: B006 - typer reads it, nobody writes it
    public: Annotated[bool, typer.Option("--public", help="Every project may clone it.")] = False,
    wait: Wait = True,
    timeout: Patience = None,
) -> None:
    """Make a snapshot of a QCOW2 image in object storage."""
    session = session_of(ctx)
    body: dict[str, Any] = {**_object(source), "tags": tags, "public": public}
    body |= session.project_body()
    if name is not None:
        body["name"] = name
    if size is not None:
        body["size"] = size_bytes(size)
    if storage_class is not None:
        body["class"] = storage_class
    made = session.client.post(session.client.block("/snapshots/import-from-object-storage"), body)
    remember(session, SNAPSHOT, made)
    job = _job_of(session, made, "import")
    called = label(SNAPSHOT, made)
    if not wait:
        session.out.resource(job, f"importing {uri(job)} as {called}: job {job['id']}")
        return
    job = follow(session, job, f"import of {called}", _seconds(timeout))
    session.out.resource(job, f"imported {uri(job)} as {called}: {moved(job)}: {made['id']}")


def verify(ctx: typer.Context, target: Object, wait: Wait = True, timeout: Patience = None) -> None:
    """Read an exported object, and check that its content is what was exported."""
    session = session_of(ctx)
    job = session.client.post("/host/v1/object-storage/verify", _object(target))
    if not wait:
        session.out.resource(job, f"verifying {uri(job)}: job {job['id']}")
        return
    job = follow(session, job, f"verification of {uri(job)}", _seconds(timeout))
    told = f"{uri(job)} is whole: {moved(job)}, digest {job['content_digest'][:16]}"
    session.out.resource(job, told)


def _object(text: str) -> dict[str, str]:
    """Bucket and key. Raises Failure."""
    bucket, _, key = text.removeprefix("s3://").partition("/")
    if not bucket or not key:
        raise usage(f"{text}: write s3://BUCKET/KEY")
    return {"bucket": bucket, "key": key}


def _job_of(session: Session, snapshot: Resource, kind: str) -> Resource:
    """The job that a request has just begun."""
    query = [("snapshot_id", snapshot["id"]), ("kind", kind), ("page_size", "1")]
    jobs: list[Resource] = session.client.get("/host/v1/jobs", query)["jobs"]
    if not jobs:
        raise Failure(Code.FAILED, f"there is no job of {label(SNAPSHOT, snapshot)}")
    return jobs[0]


def _seconds(timeout: str | None) -> float | None:
    return None if timeout is None else duration_s(timeout)
