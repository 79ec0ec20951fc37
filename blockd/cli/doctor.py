"""`blockctl doctor`: what catalog, storage and object storage do not agree upon."""

from __future__ import annotations

from typing import Annotated

import typer

from .client import Resource
from .failures import Code, usage
from .session import session_of
from .tables import print_details

#: Two looks at every class and bucket, each of which may wait for its turn.
_PATIENCE_S = 600.0


def doctor(
    ctx: typer.Context,
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FINDING]...", help="Which to fix; without: all that can be."),
    ] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Put right what can be, and look again.")
    ] = False,
) -> None:
    """Examine the host and change nothing; exit code 1 if something was found."""
    session = session_of(ctx)
    if ids and not fix:
        raise usage("findings are named to be fixed: add --fix")
    if fix:
        body = {"ids": ids} if ids else {}
        answer = session.client.post("/host/v1/doctor/fix", body, timeout_s=_PATIENCE_S)
    else:
        answer = session.client.get("/host/v1/doctor", timeout_s=_PATIENCE_S)
    findings = answer["findings"]
    if not session.out.value(answer, "\n".join(finding["id"] for finding in findings)):
        for one in answer.get("fixed", []):
            _print_fixed(one)
        for finding in findings:
            _print_finding(finding)
        if not findings:
            print("nothing is amiss")
    if findings:
        raise typer.Exit(Code.FAILED)


def _print_fixed(one: Resource) -> None:
    failure = one["failure"]
    print_details(
        [
            ("Fixed" if failure is None else "Not fixed", one["id"]),
            ("Done", one["fix"] if failure is None else ""),
            ("Reason", failure or ""),
        ],
        "ok" if failure is None else "error",
    )
    print()


def _print_finding(finding: Resource) -> None:
    print_details(
        [
            ("Finding", finding["id"]),
            ("What", finding["explanation"]),
            ("--fix", finding["fix"] or ""),
            ("Advice", finding["advice"]),
        ]
    )
    print()
