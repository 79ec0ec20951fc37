"""`blockctl snapshot …`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from blockd.domain.snapshot import Quiesce

from . import attaching, resources, transfers
from .client import Resource
from .complete import volume_names
from .options import (
    AddTags,
    AnyTag,
    ClearTags,
    Deleted,
    Iops,
    Limit,
    LongTimeout,
    NamePrefix,
    NewName,
    RemoveTags,
    Reverse,
    SnapshotRef,
    SnapshotRefs,
    Sort,
    SortBy,
    Tags,
    Timeout,
    VolumeRef,
    Wait,
    duration_s,
)
from .resolve import SNAPSHOT, VOLUME, find, remember
from .resources import AGE, CREATED, ID, NAME, STATUS, TAGS, label, size_column
from .session import session_of
from .tables import Column, print_details
from .text import instant
from .volumes import create_volume
from .wait import finish, host_view

app = typer.Typer(help="Snapshots: pictures of volumes.", no_args_is_help=True)

OF = Column("VOLUME", lambda r: (r["parent_volume"] or {}).get("name", ""), flexible=True)
PUBLIC = Column("PUBLIC", lambda r: "yes" if r["public"] else "no", wide=110)


@app.command()
def create(
    ctx: typer.Context,
    volume: VolumeRef,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Without it, one is made up.")
    ] = None,
    tags: Tags = [],  # noqa: B006 - typer reads it, nobody writes it
    public: Annotated[bool, typer.Option("--public", help="Every project may clone it.")] = False,
    quiesce: Annotated[
        Quiesce,
        typer.Option(
            "--quiesce",
            help="Freeze the guest's file systems: if they can be, or else fail, or not.",
        ),
    ] = Quiesce.AUTO,
    wait: Wait = True,
    timeout: Timeout = "5m",
) -> None:
    """Take a snapshot of a volume, also while it is in use."""
    session = session_of(ctx)
    timeout_s = duration_s(timeout)
    found = find(session, VOLUME, volume)
    body: dict[str, Any] = {"volume_id": found["id"], "tags": tags, "public": public}
    body["quiesce"] = quiesce.value
    body |= session.project_body()
    if name is not None:
        body["name"] = name
    answer = session.client.post(session.client.block("/snapshots"), body)
    remember(session, SNAPSHOT, answer)
    told = "creating"
    if wait:
        answer = finish(session, SNAPSHOT, answer, f"creating {label(SNAPSHOT, answer)}", timeout_s)
        told = "created"
    told = f"{told} {label(SNAPSHOT, answer)} of {label(VOLUME, found)}: {answer['id']}"
    session.out.resource(answer, told)


@app.command("list")
def list_(
    ctx: typer.Context,
    volume: Annotated[
        str | None,
        typer.Option(
            "--volume", metavar="VOL", help="Only of this volume.", autocompletion=volume_names
        ),
    ] = None,
    name: NamePrefix = None,
    tags: AnyTag = [],  # noqa: B006
    deleted: Deleted = False,
    sort: SortBy = Sort.CREATED,
    reverse: Reverse = False,
    limit: Limit = None,
) -> None:
    """List snapshots."""
    session = session_of(ctx)
    size = size_column(session.out, wide=90)
    columns = [NAME, OF, size, STATUS, AGE, ID, PUBLIC, TAGS, CREATED]
    volume_id = None if volume is None else find(session, VOLUME, volume)["id"]
    wanted = resources.Wanted(name, tags, deleted, sort, reverse, limit, volume_id)
    resources.list_resources(session, SNAPSHOT, columns, wanted)


@app.command()
def show(ctx: typer.Context, snapshot: SnapshotRef) -> None:
    """Show all that is known of a snapshot."""
    session = session_of(ctx)
    found = find(session, SNAPSHOT, snapshot)
    if session.out.value(found, found["id"]):
        return
    host = host_view(session.client, SNAPSHOT, found["id"])
    parent = found["parent_volume"]
    print_details(
        [
            ("Name", found["name"]),
            ("ID", found["id"]),
            ("Status", found["status"]),
            ("Error", str(host.get("error") or "")),
            ("Of", f"{label(VOLUME, parent)} ({parent['id']})" if parent else "a volume now gone"),
            ("Size", f"{session.out.size(found['size'])} ({found['size']} bytes)"),
            ("Class", found["class"]),
            ("Public", "yes" if found["public"] else "no"),
            ("Used by", "; ".join(attaching.user(one, host) for one in found["references"])),
            ("Digest", str(host.get("content_digest") or "")),
            ("Group", str(host.get("group_id") or "")),
            ("Consistency", _consistency(host)),
            ("Tags", ", ".join(found["tags"])),
            ("Project", found["project_id"]),
            ("Created", instant(found["created_at"])),
            ("Changed", instant(found["updated_at"])),
        ],
        found["status"],
    )


def _consistency(host: Resource) -> str:
    """What the bytes are fit for, and how long guests were frozen for it."""
    frozen_ms = host.get("frozen_ms")
    frozen = "" if frozen_ms is None else f", guest frozen for {frozen_ms} ms"
    return f"{host.get('consistency') or ''}{frozen}"


@app.command()
def rename(ctx: typer.Context, snapshot: SnapshotRef, new: NewName) -> None:
    """Give a snapshot another name."""
    resources.rename(session_of(ctx), SNAPSHOT, snapshot, new)


@app.command()
def tag(
    ctx: typer.Context,
    snapshot: SnapshotRef,
    add: AddTags = [],  # noqa: B006
    remove: RemoveTags = [],  # noqa: B006
    clear: ClearTags = False,
) -> None:
    """Change a snapshot's tags."""
    resources.tag(session_of(ctx), SNAPSHOT, snapshot, add=add, remove=remove, clear=clear)


@app.command()
def publish(ctx: typer.Context, snapshot: SnapshotRef) -> None:
    """Let every project see and clone a snapshot."""
    _set_public(ctx, snapshot, public=True)


@app.command()
def unpublish(ctx: typer.Context, snapshot: SnapshotRef) -> None:
    """Keep a snapshot to its own project again."""
    _set_public(ctx, snapshot, public=False)


@app.command()
def delete(
    ctx: typer.Context,
    snapshots: SnapshotRefs,
    yes: Annotated[bool, typer.Option("--yes", "-y", hidden=True)] = False,  # noqa: ARG001
) -> None:
    """Delete snapshots, in any order. For a while undelete brings them back."""
    resources.delete(session_of(ctx), SNAPSHOT, snapshots, ask=False)


@app.command()
def undelete(
    ctx: typer.Context, snapshot: SnapshotRef, wait: Wait = True, timeout: Timeout = "5m"
) -> None:
    """Bring a deleted snapshot back, whole."""
    timeout_s = duration_s(timeout)
    resources.undelete(session_of(ctx), SNAPSHOT, snapshot, wait=wait, timeout_s=timeout_s)


@app.command()
def clone(
    ctx: typer.Context,
    snapshot: SnapshotRef,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the new volume.")],
    size: Annotated[
        str | None, typer.Option("--size", metavar="SIZE", help="Larger than the snapshot.")
    ] = None,
    iops: Annotated[Iops, typer.Option("--iops", help="Performance.")] = Iops.LOW,
    tags: Tags = [],  # noqa: B006
    wait: Wait = True,
    timeout: LongTimeout = None,
) -> None:
    """Make a volume from a snapshot: volume create --from-snapshot."""
    session = session_of(ctx)
    create_volume(session, name, size, snapshot, None, iops, tags, wait, timeout)


@app.command()
def attach(
    ctx: typer.Context,
    snapshot: SnapshotRef,
    domain: attaching.Domain,
    target: attaching.Target = None,
    connect: attaching.Connect = None,
) -> None:
    """Let a guest read a snapshot, as a disk it cannot write to, until detach."""
    attaching.attach(session_of(ctx), SNAPSHOT, snapshot, domain, target, connect)


@app.command()
def detach(
    ctx: typer.Context,
    snapshot: SnapshotRef,
    domain: Annotated[
        str | None,
        typer.Argument(metavar="[DOMAIN]", help="Not needed where only one has the snapshot."),
    ] = None,
) -> None:
    """Take a snapshot from a guest. Unmount it there first: a guest may refuse."""
    attaching.detach(session_of(ctx), SNAPSHOT, snapshot, domain)


app.command()(transfers.export)
app.command("import")(transfers.import_)
app.command()(transfers.verify)


def _set_public(ctx: typer.Context, ref: str, *, public: bool) -> None:
    session = session_of(ctx)
    found = find(session, SNAPSHOT, ref)
    changed = resources.change(session, SNAPSHOT, found, {"public": public})
    told = "is public: every project may clone it" if public else "is private to its project"
    session.out.resource(changed, f"{label(SNAPSHOT, changed)} {told}")
