"""The TCP listener: TLS and a token, or nothing."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import trustme
from aiohttp import web

from blockd.api.app import make_app
from blockd.api.server import serve_tcp, tls_context
from blockd.api.tokens import read_tokens
from blockd.domain.errors import StartError
from tests.support.service import ZONE, running

TOKEN = "11111111-2222-4333-8444-555555555555"


@dataclass
class Listener:
    """Where to go, and whom to trust."""

    port: int
    trust: ssl.SSLContext

    async def get(self, token: str | None, path: str) -> tuple[int, dict[str, object]]:
        """Status and JSON body."""
        headers = {} if token is None else {"X-Auth-Token": token}
        url = f"https://localhost:{self.port}{path}"
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.get(url, ssl=self.trust) as answer,
        ):
            return answer.status, await answer.json()


@pytest.fixture
async def listener(tmp_path: Path) -> AsyncIterator[Listener]:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    tokens = tmp_path / "tokens"
    tokens.write_text(f"# terraform\n{TOKEN}\n")
    tokens.chmod(0o600)
    async with running(tmp_path) as run:
        app = make_app(run.service, _no_metrics, lambda _: False, read_tokens(tokens))
        tls = tls_context(tmp_path / "cert.pem", tmp_path / "key.pem")
        async with serve_tcp(app, "127.0.0.1", 0, tls) as port:
            yield Listener(port, trust)


async def _no_metrics() -> bytes:
    return b""


VOLUMES = f"/block/v1/zones/{ZONE}/volumes"


async def test_token_of_the_file_is_admitted(listener: Listener) -> None:
    assert await listener.get(TOKEN, VOLUMES) == (200, {"volumes": [], "total_count": 0})


@pytest.mark.parametrize(
    ("token", "reason"),
    [(None, "invalid_argument"), ("", "invalid_argument"), (TOKEN[:-1] + "6", "not_found")],
)
@pytest.mark.parametrize("path", [VOLUMES, "/host/v1/health", "/metrics", "/no/such/route"])
async def test_other_or_no_token_answers_the_documented_error(
    listener: Listener, token: str | None, reason: str, path: str
) -> None:
    assert await listener.get(token, path) == (
        401,
        {
            "type": "denied_authentication",
            "message": "authentication is denied",
            "method": "api_key",
            "reason": reason,
        },
    )


async def test_no_tls_no_answer(listener: Listener) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    writer.write(
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Auth-Token: " + TOKEN.encode() + b"\r\n\r\n"
    )
    assert b"HTTP/1.1" not in await reader.read(100)
    writer.close()


async def test_port_that_is_taken_is_named(listener: Listener, tmp_path: Path) -> None:
    app = web.Application()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with pytest.raises(StartError, match=f"cannot listen on 127.0.0.1:{listener.port}"):
        async with serve_tcp(app, "127.0.0.1", listener.port, tls):
            pass


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (TOKEN, 0o644, "can be read by everybody"),
        ("short", 0o600, "token 1 must have 32 to 256"),
        ("# nothing\n", 0o600, "there is no token in it"),
        ("ä" * 40, 0o600, "not ASCII"),
    ],
)
def test_unfit_token_file_is_named_without_its_tokens(
    tmp_path: Path, content: str, mode: int, said: str
) -> None:
    path = tmp_path / "tokens"
    path.write_text(content, "utf-8")
    path.chmod(mode)
    with pytest.raises(StartError, match=said) as refused:
        read_tokens(path)
    assert TOKEN not in str(refused.value)


def test_unfit_certificate_is_named(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("no certificate")
    with pytest.raises(StartError, match=r"cert\.pem"):
        tls_context(tmp_path / "cert.pem", tmp_path / "cert.pem")
