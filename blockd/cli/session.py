"""One run of `blockctl`: the daemon it talks to, the project it acts for, how it prints."""

from __future__ import annotations

from dataclasses import dataclass

import typer

from .client import Client
from .output import Output


@dataclass(frozen=True, slots=True)
class Session:
    """Made from the options that every command has."""

    client: Client
    out: Output
    project: str | None

    def project_query(self) -> list[tuple[str, str]]:
        """The filter of lists; without `--project` they show every project."""
        return [("project_id", self.project)] if self.project else []

    def project_body(self) -> dict[str, str]:
        """The field of a create; without `--project` the daemon takes its default."""
        return {"project_id": self.project} if self.project else {}


def session_of(ctx: typer.Context) -> Session:
    """The session that the root command made."""
    session: Session = ctx.find_root().obj
    return session
