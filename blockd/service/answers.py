"""First answers by `Idempotency-Key`, committed together with what they answer."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from blockd.catalog import Catalog, Transaction
from blockd.domain.errors import AlreadyExists
from blockd.domain.group import Group
from blockd.domain.idempotency import KEEP_ANSWER_S, FirstAnswer
from blockd.domain.job import Job
from blockd.domain.snapshot import Snapshot
from blockd.domain.units import format_timestamp
from blockd.domain.volume import Volume

Resource = TypeVar("Resource", Volume, Snapshot, Job, Group)

#: Renders the answer to a request whose change is being committed.
Remember = Callable[[Resource], FirstAnswer]


class Answers:
    """The answers of the last day."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def find(self, key: str, route: str, body_sha256: str) -> FirstAnswer | None:
        """What was answered to this key on this route, None if it is new.

        Raises:
            AlreadyExists: the key came with another body before.
        """
        oldest = _oldest(datetime.now(UTC))
        answer = await self._catalog.read(lambda tx: tx.answer(key, route, oldest))
        if answer is not None and answer.body_sha256 != body_sha256:
            raise AlreadyExists(
                "idempotency_key", key, "this Idempotency-Key came with another body before"
            )
        return answer


def remember_answer(
    tx: Transaction, resource: Resource, remember: Remember[Resource] | None
) -> None:
    """Keep the answer about `resource` in the transaction that makes it true.

    Raises:
        AnswerExists: the key was used meanwhile; the transaction must be given up.
    """
    if remember is None:
        return
    now = datetime.now(UTC)
    tx.add_answer(remember(resource), format_timestamp(now), _oldest(now))


def replace_answer(tx: Transaction, resource: Resource, remember: Remember[Resource]) -> None:
    """Keep what is known of it now instead of what `remember_answer` kept of it."""
    tx.put_answer(remember(resource))


def forget_answer(tx: Transaction, resource: Resource, remember: Remember[Resource] | None) -> None:
    """It has failed, and errors are not remembered: the key may be used again."""
    if remember is not None:
        tx.remove_answer(remember(resource))


def _oldest(now: datetime) -> str:
    return format_timestamp(now - timedelta(seconds=KEEP_ANSWER_S))
