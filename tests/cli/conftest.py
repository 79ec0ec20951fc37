"""Fixtures of the tests of `blockctl`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from tests.api.rig import Rig, served
from tests.cli.rig import Cli


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The daemon, which runs in this process, logs nothing; the environment says nothing."""
    for name in ("BLOCKD_SOCKET", "BLOCKD_ZONE", "BLOCKD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    with capture_logs():
        yield


@pytest_asyncio.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Rig]:
    """The API over the real service and sparse files."""
    async with served(tmp_path) as rig:
        yield rig


@pytest.fixture
def cli(daemon: Rig) -> Cli:
    """`blockctl` for that daemon."""
    return Cli(daemon.socket)
