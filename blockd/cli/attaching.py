"""Giving a volume, or a snapshot, to a guest, and taking it back: what both commands do."""

from __future__ import annotations

from typing import Annotated

import typer

from .client import Resource
from .resolve import Kind, find
from .resources import label
from .session import Session

#: A guest may take `[libvirt] detach_timeout` to let go of a disk.
_GUEST_S = 300.0

Domain = Annotated[
    str, typer.Argument(metavar="DOMAIN", help="A libvirt domain: its name or UUID.")
]
Target = Annotated[
    str | None,
    typer.Option(
        "--target", metavar="DEV", help="vdb (virtio) or sda (SCSI). Default: the next free vd."
    ),
]
Connect = Annotated[
    str | None,
    typer.Option("--connect", metavar="URI", help="Where several connections have the domain."),
]


def attach(
    session: Session, kind: Kind, ref: str, domain: str, target: str | None, connect: str | None
) -> None:
    """Give it to the guest, and say as which disk."""
    found = find(session, kind, ref)
    body = {"domain": domain, "target": target, "uri": connect}
    given = {key: value for key, value in body.items() if value is not None}
    path = f"/host/v1/{kind.plural}/{found['id']}/attach"
    answer = session.client.post(path, given, timeout_s=_GUEST_S)
    made = answer["attachments"][-1]  # the newest
    told = f"{label(kind, found)} is {made['target']} of {made['domain']}"
    session.out.resource(answer, told)


def detach(session: Session, kind: Kind, ref: str, domain: str | None) -> None:
    """Take it from the guest."""
    found = find(session, kind, ref)
    body = {} if domain is None else {"domain": domain}
    path = f"/host/v1/{kind.plural}/{found['id']}/detach"
    answer = session.client.post(path, body, timeout_s=_GUEST_S)
    session.out.resource(answer, f"{label(kind, found)} is detached")


def user(reference: Resource, host: Resource) -> str:
    """A guest by its name, as far as it is known: it is what people know."""
    for one in host.get("attachments", []):
        if one["reference_id"] == reference["id"]:
            target = f" as {one['target']}" if one["target"] else ""
            return f"domain {one['domain']}{target} ({reference['status']})"
    return f"domain {reference['product_resource_id']} ({reference['status']})"
