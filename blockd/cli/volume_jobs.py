"""Waiting for what is done to volumes: thick ones take as long as their disk, and have a bar."""

from __future__ import annotations

from .client import Query, Resource
from .failures import Failure
from .options import duration_s
from .resolve import VOLUME
from .session import Session
from .text import clean, quoted
from .wait import TRANSIENT, finish
from .watch import follow, uri

#: The type of volumes of thick classes (wire.md, b).
THICK = "b_ssd"
_PATIENCE_S = 300.0
_IDS_AT_ONCE = 50


def patience_s(timeout: str | None) -> float | None:
    """Seconds of `--timeout`, None where it is not given. Raises Failure."""
    return None if timeout is None else duration_s(timeout)


def finish_volume(
    session: Session, answer: Resource, doing: str, timeout_s: float | None
) -> Resource:
    """As `finish`, of a volume.

    Args:
        timeout_s: None: five minutes, or until it ends where a disk is written over or merged.

    Raises:
        Failure: see `finish` and `follow`.
    """
    if answer.get("type") == THICK and answer["status"] in TRANSIENT:
        query: Query = [("volume_id", answer["id"]), ("page_size", "1")]
        for job in session.client.get("/host/v1/jobs", query)["jobs"]:
            follow(session, job, doing, timeout_s)
    return finish(session, VOLUME, answer, doing, _PATIENCE_S if timeout_s is None else timeout_s)


def subjects(session: Session, jobs: list[Resource]) -> dict[str, str]:
    """What each job is about, by its id: an object's URI, or a volume by its name."""
    ids = sorted({job["volume_id"] for job in jobs if job["volume_id"]})
    names: dict[str, str] = {}
    for first in range(0, len(ids), _IDS_AT_ONCE):
        query = [("volume_ids", id_) for id_ in ids[first : first + _IDS_AT_ONCE]]
        query.append(("include_deleted", "true"))
        volumes = session.client.each(session.client.block("/volumes"), "volumes", query)
        names |= {volume["id"]: quoted(volume["name"]) for volume in volumes}
    return {
        job["id"]: f"volume {names.get(job['volume_id'], job['volume_id'])}"
        if job["volume_id"]
        else uri(job)
        for job in jobs
    }


def subject(session: Session, job: Resource) -> str:
    """What one job is about, harmless on a terminal."""
    try:
        return clean(subjects(session, [job])[job["id"]])
    except Failure:
        return f"volume {job['volume_id']}"  # its zone is another one's, say
