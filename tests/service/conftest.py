"""What more than one room needs: an object store, a proxy before it, and a libvirtd."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator

import pytest

from blockd.transfer import s3_requests
from tests.support.faulty_store import FaultyStore
from tests.support.libvirt_daemon import LibvirtDaemon, libvirt_daemon
from tests.support.object_store import BUCKET, Server, object_store


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with object_store(tmp_path_factory.mktemp("store"), looks_again=True) as running:
        yield running


@pytest.fixture
async def store(server: Server) -> AsyncIterator[FaultyStore]:
    server.abort_uploads()  # what is left where a test had the bucket vanish
    for old in (server.folder / BUCKET).iterdir():
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    async with FaultyStore(server).serve() as proxy:
        yield proxy


@pytest.fixture
def libvirtd() -> Iterator[LibvirtDaemon]:
    with libvirt_daemon() as daemon:
        yield daemon


@pytest.fixture
def quick_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that hangs is noticed within a moment."""
    for name in ("_SILENCE_S", "_ANSWER_S"):
        monkeypatch.setattr(s3_requests, name, 2.0)
