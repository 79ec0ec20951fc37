"""The verbs that volumes and snapshots have in common."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .client import Resource
from .failures import Code, Failure, usage
from .options import Sort, limit_of
from .output import Output
from .resolve import Kind, find, find_deleted, remember
from .session import Session
from .tables import Column
from .text import age, clean, quoted
from .wait import finish

NAME = Column("NAME", lambda r: r["name"], flexible=True)
STATUS = Column("STATUS", lambda r: r["status"], coloured=True)
AGE = Column("AGE", lambda r: age(r["created_at"]), right=True)
TAGS = Column("TAGS", lambda r: ",".join(r["tags"]), flexible=True, wide=140)
CREATED = Column("CREATED", lambda r: r["created_at"], wide=170)
ID = Column("ID", lambda r: r["id"])


def size_column(out: Output, wide: int = 0) -> Column:
    """SIZE, in the person's unit."""
    return Column("SIZE", lambda r: out.size(r["size"]), right=True, wide=wide)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which resources to list, and in which order. `limit` is as the person wrote it."""

    name: str | None
    tags: Sequence[str]
    deleted: bool
    sort: Sort
    reverse: bool
    limit: str | None
    volume_id: str | None = None

    def query(self) -> list[tuple[str, str]]:
        """The API's filters and order."""
        order = "created_at" if self.sort is Sort.CREATED else "name"
        query = [("order_by", f"{order}_{'desc' if self.reverse else 'asc'}")]
        query += [("name", self.name)] if self.name else []
        query += [("tags", tag) for tag in self.tags]
        query += [("volume_id", self.volume_id)] if self.volume_id else []
        query += [("include_deleted", "true")] if self.deleted else []
        return query


def list_resources(session: Session, kind: Kind, columns: Sequence[Column], wanted: Wanted) -> None:
    """Print all resources that match, page after page."""
    client = session.client
    limit = limit_of(wanted.limit)
    query = [*session.project_query(), *wanted.query()]
    items = list(client.each(client.block(f"/{kind.plural}"), kind.plural, query, limit))
    if not items and session.out.for_people and sys.stdout.isatty():
        filtered = wanted.name or wanted.tags or wanted.volume_id
        print(f"no {kind.plural}{' match' if filtered else ' yet'}", file=sys.stderr)
        return
    session.out.listing(items, columns, "id")


def rename(session: Session, kind: Kind, ref: str, new: str) -> None:
    """Give another name."""
    found = find(session, kind, ref)
    changed = change(session, kind, found, {"name": new})
    told = f"{kind.word} {quoted(found['name'])} is now called {quoted(changed['name'])}"
    session.out.resource(changed, told)


def tag(
    session: Session,
    kind: Kind,
    ref: str,
    *,
    add: Sequence[str],
    remove: Sequence[str],
    clear: bool,
) -> None:
    """Change tags: first clear, then remove, then add; their order is kept."""
    if not (add or remove or clear):
        raise usage("say what to do with the tags: --add, --remove or --clear")
    found = find(session, kind, ref)
    kept = [t for t in found["tags"] if not clear and t not in remove]
    tags = list(dict.fromkeys([*kept, *add]))
    changed = change(session, kind, found, {"tags": tags})
    told = (
        f"has the tags: {clean(', '.join(changed['tags']))}" if changed["tags"] else "has no tags"
    )
    session.out.resource(changed, f"{label(kind, changed)} {told}")


def change(session: Session, kind: Kind, found: Resource, body: Mapping[str, object]) -> Resource:
    """PATCH `body` and return the resource as it is then."""
    client = session.client
    return client.patch(client.block(f"/{kind.plural}/{found['id']}"), body)


def delete(session: Session, kind: Kind, refs: Sequence[str], *, ask: bool) -> None:
    """Delete several. All must exist before the first goes; one refusal does not stop the rest.

    With `--json` an array of `{"id", "status": "deleted"}` is printed, as the API answers nothing.

    Raises:
        Failure: the last of those refused; the others were printed to stderr.
    """
    found = {item["id"]: item for item in (find(session, kind, ref) for ref in refs)}
    if ask:
        _confirm(kind, list(found.values()))
    client = session.client
    gone: list[Resource] = []
    refused: list[Failure] = []
    for item in found.values():
        try:
            client.delete(client.block(f"/{kind.plural}/{item['id']}"))
        except Failure as failure:
            refused.append(failure)
            if failure.code is Code.UNREACHABLE:
                break
        else:
            gone.append(item)
    deleted = [{"id": item["id"], "status": "deleted"} for item in gone]
    if session.out.json or not session.out.for_people:
        session.out.listing(deleted, [], "id")
    else:
        for item in gone:
            undo = f"blockctl {kind.word} undelete {item['id']}"
            print(f"deleted {label(kind, item)}; to have it back: {undo}")
    for earlier in refused[:-1]:
        print(f"blockctl: {clean(earlier.text)}", file=sys.stderr)
    if refused:
        raise refused[-1]


def undelete(session: Session, kind: Kind, ref: str, *, wait: bool, timeout_s: float) -> None:
    """Take back from the trash."""
    found = find_deleted(session, kind, ref)
    answer = session.client.post(f"/host/v1/{kind.plural}/{found['id']}/undelete", {})
    remember(session, kind, answer)
    doing = f"undeleting {label(kind, answer)}"
    if wait:
        answer = finish(session, kind, answer, doing, timeout_s)
    session.out.resource(answer, f"{label(kind, answer)} is back: {answer['id']}")


def label(kind: Kind, resource: Resource) -> str:
    """What sentences call it: `volume "data"`."""
    return f"{kind.word} {quoted(resource['name'])}"


def _confirm(kind: Kind, items: Sequence[Resource]) -> None:
    """Ask on the terminal. Raises Failure when nobody can be asked, or the answer is no."""
    names = ", ".join(quoted(item["name"]) for item in items)
    what = f"{kind.word if len(items) == 1 else kind.plural} {names}"
    if not sys.stdin.isatty():
        raise usage(f"nobody can be asked whether to delete {what}: say --yes")
    print(f"Delete {what}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Failure(Code.FAILED, "nothing deleted")
