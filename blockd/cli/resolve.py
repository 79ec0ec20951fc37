"""Which resource a person means: a UUID is an id, anything else an exact name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import takewhile

from .client import Resource
from .failures import Code, Failure, usage
from .session import Session
from .text import quoted

UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
MOST_IDS_TOLD = 10


@dataclass(frozen=True, slots=True)
class Kind:
    """`volume` or `snapshot`."""

    word: str

    @property
    def plural(self) -> str:
        """The word in routes, and the key of lists."""
        return f"{self.word}s"


VOLUME = Kind("volume")
SNAPSHOT = Kind("snapshot")


def find(session: Session, kind: Kind, text: str) -> Resource:
    """The living resource that `text` means, as the API shows it.

    Raises:
        Failure: there is none (3), several have that name (2), or the daemon fails.
    """
    if UUID.fullmatch(text):
        client = session.client
        resource = client.get(client.block(f"/{kind.plural}/{text.lower()}"))
        return remember(session, kind, resource)
    if found := _named(session, kind, text, deleted=False):
        return _the_one(session, kind, text, found)
    hint = ""
    if _named(session, kind, text, deleted=True):
        hint = f": it is deleted; blockctl {kind.word} undelete brings it back"
    raise Failure(Code.NOT_FOUND, f"there is no {kind.word} {quoted(text)}{hint}")


def find_deleted(session: Session, kind: Kind, text: str) -> Resource:
    """The deleted, not yet erased resource that `text` means.

    Raises:
        Failure: as `find`; whether an id is a deleted one's is for the daemon to tell.
    """
    if UUID.fullmatch(text):
        client = session.client
        return remember(session, kind, client.get(f"/host/v1/{kind.plural}/{text.lower()}"))
    found = _named(session, kind, text, deleted=True)
    if not found:
        text = f"there is no deleted {kind.word} {quoted(text)}: it may have been erased"
        raise Failure(Code.NOT_FOUND, text)
    return _the_one(session, kind, text, found)


def remember(session: Session, kind: Kind, resource: Resource) -> Resource:
    """Let messages call it by its name from now on."""
    session.client.labels[resource["id"]] = f"{kind.word} {quoted(resource['name'])}"
    return resource


def _named(session: Session, kind: Kind, name: str, *, deleted: bool) -> list[Resource]:
    if not name:
        raise usage(f"the name of a {kind.word} is never empty")
    client = session.client
    query = [*session.project_query(), ("name", name), ("order_by", "name_asc")]
    if deleted:
        query.append(("include_deleted", "true"))
    listed = client.each(client.block(f"/{kind.plural}"), kind.plural, query)
    # The filter is a prefix, and the name itself sorts before all that only begin with it.
    exact = takewhile(lambda item: item["name"] == name, listed)
    return [item for item in exact if (item["status"] == "deleted") == deleted]


def _the_one(session: Session, kind: Kind, name: str, found: list[Resource]) -> Resource:
    if len(found) > 1:
        told = ", ".join(item["id"] for item in found[:MOST_IDS_TOLD])
        more = f" and {len(found) - MOST_IDS_TOLD} more" if len(found) > MOST_IDS_TOLD else ""
        raise usage(f"{len(found)} {kind.plural} are named {quoted(name)}: use an id: {told}{more}")
    return remember(session, kind, found[0])
