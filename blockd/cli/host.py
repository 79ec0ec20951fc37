"""`blockctl health` and `version`: questions about the host."""

from __future__ import annotations

import sys

import typer

from blockd import __version__

from .client import Resource
from .failures import Code, Failure
from .session import session_of
from .tables import print_details
from .text import age, clean, percent


def health(ctx: typer.Context) -> None:
    """Tell how the daemon does; exit code 1 if degraded."""
    session = session_of(ctx)
    answer = session.client.health()
    if not session.out.value(answer, answer["status"]):
        pools = [
            f"{p['name']}: data {percent(p['used'], p['size'])},"
            f" metadata {percent(p['metadata_used'], p['metadata_size'])}, {_extension(p)}"
            for p in answer["pools"]
        ]
        print_details(
            [
                ("Status", answer["status"]),
                *(("Problem", problem) for problem in answer["problems"]),
                ("Version", answer["version"]),
                ("Zone", answer["zone"]),
                *(("Pool", line) for line in pools),
                *(("Catalog copy", _copy_line(copy)) for copy in answer.get("catalog_copies", [])),
                ("Under way", f"{answer['queued']} operations"),
            ],
            answer["status"],
        )
    if answer["status"] != "ok":
        raise typer.Exit(Code.FAILED)


def _copy_line(copy: Resource) -> str:
    if copy["written_at"] is None:
        return f"{copy['class']}: none"
    behind = f", {copy['behind']:.0f} s behind" if copy["behind"] >= 1 else ""
    return f"{copy['class']}: written {age(copy['written_at'])} ago{behind}"


def version(ctx: typer.Context) -> None:
    """Print the versions of blockctl and blockd."""
    session = session_of(ctx)
    daemon, why = None, ""
    try:
        daemon = session.client.health()["version"]
    except Failure as failure:
        why = failure.text
    if session.out.value({"blockctl": __version__, "blockd": daemon}, __version__):
        return
    print(f"blockctl  {__version__}")
    print(f"blockd    {clean(daemon or 'not known')}")
    if why:
        print(f"blockctl: {clean(why)}", file=sys.stderr)


def _extension(pool: Resource) -> str:
    extension = pool["extension"]
    return "can be extended" if extension["works"] else f"not extended: {extension['reason']}"
