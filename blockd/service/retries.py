"""Pauses before another attempt, which somebody may cut short; and why the last one failed."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Retries(Generic[Key]):
    """`problems` holds a line for each attempt that failed and has not succeeded since."""

    def __init__(self) -> None:
        self.problems: dict[Key, str] = {}
        self._pauses: dict[Key, asyncio.Event] = {}
        self._failures: dict[Key, asyncio.Event] = {}
        self._stopped = False

    async def pause(self, key: Key, problem: str, seconds: float) -> None:
        """Wait for so long, or until somebody ends it."""
        self.problems[key] = problem
        if failure := self._failures.get(key):
            failure.set()
        if self._stopped:
            return
        ended = self._pauses[key] = asyncio.Event()
        try:
            async with asyncio.timeout(seconds):
                await ended.wait()
        except TimeoutError:
            pass
        finally:
            del self._pauses[key]

    def succeeded(self, key: Key) -> None:
        """The problem is no more."""
        self.problems.pop(key, None)
        if failure := self._failures.get(key):
            failure.set()

    async def again(self, key: Key, within_s: float) -> str | None:
        """Cut the pause short; why it failed once more, None when it did not.

        Raises:
            TimeoutError: it takes longer.
        """
        if key not in self.problems:
            return None
        outcome = self._failures[key] = asyncio.Event()
        if pause := self._pauses.get(key):
            pause.set()
        try:
            async with asyncio.timeout(within_s):
                await outcome.wait()
        finally:
            del self._failures[key]
        return self.problems.get(key)

    def all_again(self) -> None:
        """End all pauses of this moment."""
        for pause in self._pauses.values():
            pause.set()

    def stop(self) -> None:
        """End all pauses, and those to come."""
        self._stopped = True
        self.all_again()
