"""Completion of names and ids. Whatever goes wrong here, the shell gets an empty list, and soon."""

from __future__ import annotations

import os

import typer

from .client import Client
from .failures import Failure
from .text import clean

DEFAULT_SOCKET = "/run/blockd/blockd.sock"
MOST = 50
PATIENCE_S = 1.0


def volume_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of volumes that begin with `incomplete`."""
    return _names(ctx, "volumes", incomplete)


def snapshot_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of snapshots that begin with `incomplete`."""
    return _names(ctx, "snapshots", incomplete)


def job_ids(ctx: typer.Context, incomplete: str) -> list[str]:
    """Ids of jobs that begin with `incomplete`; where a job is cancelled, of those under way."""
    client = _client(ctx)
    try:
        jobs = list(client.each("/host/v1/jobs", "jobs", (), MOST))
        if ctx.info_name == "cancel":
            jobs = [job for job in jobs if not job["finished_at"]]
        ids = [str(job["id"]) for job in jobs]
    except (Failure, KeyError, TypeError, UnicodeError):
        return []
    finally:
        client.close()
    return [id_ for id_ in ids if id_.startswith(incomplete) and clean(id_) == id_]


def _client(ctx: typer.Context) -> Client:
    given = ctx.find_root().params
    path = given.get("socket") or os.environ.get("BLOCKD_SOCKET") or DEFAULT_SOCKET
    return Client(path, given.get("zone") or os.environ.get("BLOCKD_ZONE"), PATIENCE_S)


def _names(ctx: typer.Context, plural: str, incomplete: str) -> list[str]:
    client = _client(ctx)
    query = [("order_by", "name_asc"), *([("name", incomplete)] if incomplete else [])]
    if ctx.info_name == "undelete":
        query.append(("include_deleted", "true"))
    try:
        items = client.each(client.block(f"/{plural}"), plural, query, MOST)
        names = [i["name"] for i in items if ctx.info_name != "undelete" or _is_deleted(i)]
    except (Failure, KeyError, TypeError, UnicodeError):
        return []
    finally:
        client.close()
    return [name for name in names if clean(name) == name]


def _is_deleted(item: dict[str, object]) -> bool:
    return item["status"] == "deleted"
