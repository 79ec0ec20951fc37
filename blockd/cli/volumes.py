"""`blockctl volume …`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from . import attaching, resources
from .client import Resource
from .failures import Code, Failure, usage
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
    Sort,
    SortBy,
    Tags,
    Timeout,
    VolumeRef,
    VolumeRefs,
    Wait,
    duration_s,
    size_bytes,
)
from .resolve import SNAPSHOT, VOLUME, find, remember
from .resources import AGE, CREATED, ID, NAME, STATUS, TAGS, label, size_column
from .session import Session, session_of
from .tables import Column, print_details
from .text import clean, instant
from .volume_jobs import finish_volume, patience_s
from .wait import host_view

app = typer.Typer(help="Volumes: block devices to use.", no_args_is_help=True)

FROM = Column("FROM", lambda r: r["parent_snapshot_id"] or "", wide=110)


@app.command()
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the new volume.")],
    size: Annotated[
        str | None, typer.Option("--size", metavar="SIZE", help="20G, 512MiB, 10GB.")
    ] = None,
    from_snapshot: Annotated[
        str | None,
        typer.Option("--from-snapshot", metavar="SNAP", help="Clone this snapshot."),
    ] = None,
    storage_class: Annotated[
        str | None,
        typer.Option("--class", metavar="CLASS", help="sbs, bssd: volume types."),
    ] = None,
    iops: Annotated[Iops, typer.Option("--iops", help="Performance.")] = Iops.LOW,
    tags: Tags = [],  # noqa: B006 - typer reads it, nobody writes it
    wait: Wait = True,
    timeout: LongTimeout = None,
) -> None:
    """Make a volume, empty or from a snapshot."""
    session = session_of(ctx)
    create_volume(session, name, size, from_snapshot, storage_class, iops, tags, wait, timeout)


def create_volume(
    session: Session,
    name: str,
    size: str | None,
    from_snapshot: str | None,
    storage_class: str | None,
    iops: Iops,
    tags: list[str],
    wait: bool,
    timeout: str | None,
) -> None:
    """What `volume create` and `snapshot clone` do. Raises Failure."""
    timeout_s = patience_s(timeout)
    size_field: dict[str, Any] = {} if size is None else {"size": size_bytes(size)}
    body: dict[str, Any] = {"name": name, "tags": tags, "perf_iops": int(iops)}
    body |= session.project_body()
    if storage_class is not None:
        body["class"] = storage_class
    if from_snapshot is not None:
        snapshot = find(session, SNAPSHOT, from_snapshot)
        body["from_snapshot"] = {"snapshot_id": snapshot["id"], **size_field}
    elif size_field:
        body["from_empty"] = size_field
    else:
        raise usage("say how large the volume is with --size, or what it comes --from-snapshot")
    answer = session.client.post(session.client.block("/volumes"), body)
    remember(session, VOLUME, answer)
    told = "creating"
    if wait:
        answer = finish_volume(session, answer, f"creating {label(VOLUME, answer)}", timeout_s)
        told = "created"
    size_told = session.out.size(answer["size"])
    session.out.resource(answer, f"{told} {label(VOLUME, answer)} ({size_told}): {answer['id']}")


@app.command("list")
def list_(
    ctx: typer.Context,
    name: NamePrefix = None,
    tags: AnyTag = [],  # noqa: B006
    deleted: Deleted = False,
    sort: SortBy = Sort.CREATED,
    reverse: Reverse = False,
    limit: Limit = None,
) -> None:
    """List volumes."""
    session = session_of(ctx)
    columns = [NAME, size_column(session.out), STATUS, AGE, ID, FROM, TAGS, CREATED]
    wanted = resources.Wanted(name, tags, deleted, sort, reverse, limit)
    resources.list_resources(session, VOLUME, columns, wanted)


@app.command()
def show(ctx: typer.Context, volume: VolumeRef) -> None:
    """Show all that is known of a volume."""
    session = session_of(ctx)
    found = find(session, VOLUME, volume)
    if session.out.value(found, found["id"]):
        return
    host = host_view(session.client, VOLUME, found["id"])
    specs = found["specs"]
    iops = f", {specs['perf_iops']} IOPS" if specs["perf_iops"] else ""
    print_details(
        [
            ("Name", found["name"]),
            ("ID", found["id"]),
            ("Status", found["status"]),
            ("Error", str(host.get("error") or "")),
            ("Size", f"{session.out.size(found['size'])} ({found['size']} bytes)"),
            ("Class", f"{specs['class']}{iops} ({found['type']})"),
            ("Device", _device(session, found)),
            ("From", _origin(session, found)),
            ("Tags", ", ".join(found["tags"])),
            ("Used by", "; ".join(attaching.user(one, host) for one in found["references"])),
            ("Project", found["project_id"]),
            ("Created", instant(found["created_at"])),
            ("Changed", instant(found["updated_at"])),
        ],
        found["status"],
    )


@app.command()
def rename(ctx: typer.Context, volume: VolumeRef, new: NewName) -> None:
    """Give a volume another name."""
    resources.rename(session_of(ctx), VOLUME, volume, new)


@app.command()
def tag(
    ctx: typer.Context,
    volume: VolumeRef,
    add: AddTags = [],  # noqa: B006
    remove: RemoveTags = [],  # noqa: B006
    clear: ClearTags = False,
) -> None:
    """Change a volume's tags."""
    resources.tag(session_of(ctx), VOLUME, volume, add=add, remove=remove, clear=clear)


@app.command()
def grow(
    ctx: typer.Context,
    volume: VolumeRef,
    size: Annotated[
        str, typer.Argument(metavar="SIZE", help="The new size, or +5G to add that much.")
    ],
    wait: Wait = True,
    timeout: LongTimeout = None,
) -> None:
    """Make a volume larger, also while it is in use. It never shrinks."""
    session = session_of(ctx)
    by_bytes = size_bytes(size.removeprefix("+"))
    found = find(session, VOLUME, volume)
    new = found["size"] + by_bytes if size.startswith("+") else by_bytes
    changed = _change(session, found, {"size": new}, "growing", wait, timeout)
    verb = "has now" if wait else "is growing to"
    told = f"{label(VOLUME, changed)} {verb} {session.out.size(changed['size'] if wait else new)}"
    session.out.resource(changed, told)


@app.command("set-iops")
def set_iops(
    ctx: typer.Context,
    volume: VolumeRef,
    iops: Annotated[Iops, typer.Argument(metavar="IOPS", help="5000 or 15000.")],
    wait: Wait = True,
    timeout: Timeout = "5m",
) -> None:
    """Change a volume's performance."""
    session = session_of(ctx)
    found = find(session, VOLUME, volume)
    body = {"perf_iops": int(iops)}
    changed = _change(session, found, body, "changing the IOPS of", wait, timeout)
    verb = "has now" if wait else "is changing to"
    session.out.resource(changed, f"{label(VOLUME, changed)} {verb} {iops.value} IOPS")


@app.command()
def delete(
    ctx: typer.Context,
    volumes: VolumeRefs,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete volumes. Their snapshots stay, and for a while undelete brings them back."""
    resources.delete(session_of(ctx), VOLUME, volumes, ask=not yes)


@app.command()
def undelete(
    ctx: typer.Context, volume: VolumeRef, wait: Wait = True, timeout: Timeout = "5m"
) -> None:
    """Bring a deleted volume back, whole."""
    timeout_s = duration_s(timeout)
    resources.undelete(session_of(ctx), VOLUME, volume, wait=wait, timeout_s=timeout_s)


@app.command()
def revert(
    ctx: typer.Context,
    volume: VolumeRef,
    snapshot: SnapshotRef,
    keep_previous: Annotated[
        bool,
        typer.Option(
            "--keep-previous/--no-keep-previous",
            help="First keep what the volume holds now as a snapshot.",
        ),
    ] = True,
    wait: Wait = True,
    timeout: LongTimeout = None,
) -> None:
    """Give a volume the bytes of a snapshot again. It must not be in use."""
    session = session_of(ctx)
    timeout_s = patience_s(timeout)
    found = find(session, VOLUME, volume)
    picture = find(session, SNAPSHOT, snapshot)
    body = {"snapshot_id": picture["id"], "keep_previous": keep_previous}
    answer = session.client.post(f"/host/v1/volumes/{found['id']}/revert", body)
    told = "is being reverted"
    if wait:
        doing = f"reverting {label(VOLUME, found)} to {label(SNAPSHOT, picture)}"
        answer = finish_volume(session, answer, doing, timeout_s)
        told = "is back"
    kept = "; what it held is kept as a snapshot" if keep_previous else ""
    told = f"{label(VOLUME, found)} {told} to {label(SNAPSHOT, picture)}{kept}"
    session.out.resource(answer, told)


@app.command()
def attach(
    ctx: typer.Context,
    volume: VolumeRef,
    domain: attaching.Domain,
    target: attaching.Target = None,
    connect: attaching.Connect = None,
) -> None:
    """Give a guest a volume, running or not: it keeps it until detach."""
    attaching.attach(session_of(ctx), VOLUME, volume, domain, target, connect)


@app.command()
def detach(
    ctx: typer.Context,
    volume: VolumeRef,
    domain: Annotated[
        str | None,
        typer.Argument(metavar="[DOMAIN]", help="Not needed where only one has the volume."),
    ] = None,
) -> None:
    """Take a volume from a guest. Unmount it there first: a guest may refuse."""
    attaching.detach(session_of(ctx), VOLUME, volume, domain)


@app.command()
def path(ctx: typer.Context, volume: VolumeRef) -> None:
    """Print a volume's device path, for scripts.

    mount $(blockctl volume path data) /mnt
    """
    session = session_of(ctx)
    found = find(session, VOLUME, volume)
    device = session.client.get(f"/host/v1/volumes/{found['id']}/device")
    if not session.out.value(device, device["path"]):
        print(clean(device["path"]))


@app.command()
def types(ctx: typer.Context) -> None:
    """List the types that volumes can have."""
    session = session_of(ctx)
    client = session.client
    items = client.get(client.block("/volume-types"), [("page_size", "100")])["volume_types"]
    columns = [
        Column("TYPE", lambda t: t["type"]),
        Column("CLASS", lambda t: t["specs"]["class"]),
        Column("IOPS", lambda t: str(t["specs"]["perf_iops"] or "-"), right=True),
    ]
    session.out.listing(items, columns, "type")


def _device(session: Session, found: Resource) -> str:
    """The path of a volume's device; empty while it has none."""
    try:
        return str(session.client.get(f"/host/v1/volumes/{found['id']}/device")["path"])
    except Failure as failure:
        if failure.code is Code.REFUSED:
            return ""
        raise


def _change(
    session: Session,
    found: Resource,
    body: Mapping[str, object],
    doing: str,
    wait: bool,
    timeout: str | None,
) -> Resource:
    timeout_s = patience_s(timeout)
    answer = resources.change(session, VOLUME, found, body)
    if not wait:
        return answer
    return finish_volume(session, answer, f"{doing} {label(VOLUME, found)}", timeout_s)


def _origin(session: Session, found: Resource) -> str:
    """The snapshot a volume was cloned from, with its name while it exists."""
    snapshot_id = found["parent_snapshot_id"]
    if not snapshot_id:
        return ""
    try:
        return f"{label(SNAPSHOT, find(session, SNAPSHOT, snapshot_id))} ({snapshot_id})"
    except Failure as failure:
        if failure.code not in (Code.NOT_FOUND, Code.DENIED):
            raise
        return f"snapshot {snapshot_id}, which is gone"
