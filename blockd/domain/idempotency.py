"""The first answer to a POST, kept so that a repeated request gets it again."""

from __future__ import annotations

from dataclasses import dataclass

#: How long an `Idempotency-Key` is remembered (product, section 2).
KEEP_ANSWER_S = 86_400


@dataclass(frozen=True, slots=True)
class FirstAnswer:
    """What was answered. `route` is method and path, `body` the answer's JSON text."""

    key: str
    route: str
    body_sha256: str
    status: int
    body: str


class AnswerExists(Exception):
    """Another request with the same key and route came first: look up its answer."""
