"""An object store for all tests of a module, and a fresh proxy before it for each test."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.faulty_store import FaultyStore
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
