"""Requests that fail for a while: tried again, later and later, up to a deadline."""

from __future__ import annotations

import asyncio
import os
import random
import ssl
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import aiohttp
import structlog

from blockd.domain.errors import ObjectStoreError, StoreUnavailable

T = TypeVar("T")
log = structlog.get_logger()

_FIRST_WAIT_S: Final = 0.2
_LONGEST_WAIT_S: Final = 20.0

#: A request that failed and brought so much was worth it: patience begins anew.
_WORTH_BYTES: Final = 256 * 1024


class Transient(Exception):
    """The request failed, and the next one may not; `wait_s` is what the server asked for."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class TooSlow(TimeoutError):
    """It came too slowly, or was taken too slowly, ever to end; says what.

    The server may have done what it was asked.
    """


class Patience:
    """For how long a failing request is tried again, counted from its first failure.

    One that brings something each time goes on for as long as it does.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s

    async def over(
        self, ask: Callable[[], Awaitable[T]], what: str, came: Callable[[], int] = lambda: 0
    ) -> T:
        """What `ask` answers, at the last.

        Args:
            ask: must be able to do it all again.
            what: for logs and errors: `reading s3://bucket/key`.
            came: how many bytes have come in all attempts, and need not come again.

        Raises:
            StoreUnavailable: it failed until the deadline; says why.
        """
        return await self._try(ask, what, came, may_repeat=True)

    async def once(self, ask: Callable[[], Awaitable[T]], what: str) -> T:
        """The same, but a request that the server may have carried out is not repeated."""
        return await self._try(ask, what, lambda: 0, may_repeat=False)

    async def _try(
        self,
        ask: Callable[[], Awaitable[T]],
        what: str,
        came: Callable[[], int],
        *,
        may_repeat: bool,
    ) -> T:
        loop = asyncio.get_running_loop()
        deadline_s: float | None = None
        wait_s, had_bytes = _FIRST_WAIT_S, 0
        while True:
            try:
                return await ask()
            except ObjectStoreError:
                raise
            except (Transient, aiohttp.ClientError, OSError, TimeoutError) as err:
                reason = _reason(err)
                if isinstance(err, aiohttp.ClientConnectorCertificateError | ssl.SSLError):
                    raise StoreUnavailable(f"{what}: {reason}") from err
                was_not_done = isinstance(err, Transient | aiohttp.ClientConnectorError)
                if not may_repeat and not was_not_done:
                    raise StoreUnavailable(f"{what}: {reason}") from err
                asked_s = err.wait_s if isinstance(err, Transient) else 0.0
            if came() >= had_bytes + _WORTH_BYTES:
                deadline_s, wait_s, had_bytes = None, _FIRST_WAIT_S, came()
            if deadline_s is None:
                deadline_s = loop.time() + self._patience_s
            # Jitter, or all parts would come back in the same moment.
            pause_s = min(max(wait_s * random.uniform(0.5, 1.0), asked_s), _LONGEST_WAIT_S)  # noqa: S311
            if loop.time() + pause_s > deadline_s:
                raise StoreUnavailable(f"{what}: {reason} (tried for {self._patience_s:.0f} s)")
            log.warning("object storage failed, trying again", what=what, reason=reason)
            await asyncio.sleep(pause_s)
            wait_s = min(wait_s * 2, _LONGEST_WAIT_S)


def _reason(err: Exception) -> str:
    match err:
        case aiohttp.ClientConnectorCertificateError():
            return (
                f"the server's certificate is not trusted ({err.certificate_error}): "
                "set object_storage.ca_file"
            )
        case aiohttp.ClientConnectorError():
            number = err.os_error.errno
            why = os.strerror(number) if number is not None and number > 0 else "no such host"
            return f"cannot connect to {err.host}:{err.port}: {why}"
        case TooSlow():
            pass  # says it itself
        case TimeoutError():
            return "the server does not answer"
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError() | ConnectionError():
            return "the server closed the connection"
        case aiohttp.ClientError():
            return f"the connection failed ({type(err).__name__})"
    return str(err)
