"""The drivers under contract: `file` always, `thin` in the lab."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from tests.contract.storage import FileStorage, Storage, ThinStorage

#: The lab's disk that may be overwritten; elsewhere there is none of this name.
LAB_DISK = Path("/dev/ubda")


@asynccontextmanager
async def open_thin(disk: Path) -> AsyncIterator[ThinStorage]:
    """A started `LvmThin` on a fresh VG on `disk`, with a pool of about 1 GiB.

    The one place that knows how the thin driver is made. It yields the driver with its VG, its
    pool, and a function that runs an LVM command by hand in the driver's LVM configuration.
    """
    raise NotImplementedError(f"LvmThin on {disk}")
    yield  # pragma: no cover


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def thin_session() -> AsyncIterator[ThinStorage]:
    """One VG for all tests: making one takes seconds in the lab."""
    if not LAB_DISK.is_block_device():
        pytest.skip(f"no {LAB_DISK}: run inside scripts/lab")
    async with open_thin(LAB_DISK) as storage:
        yield storage


@pytest_asyncio.fixture(loop_scope="session")
async def thin(thin_session: ThinStorage) -> AsyncIterator[ThinStorage]:
    """The thin driver; the pool is empty again after each test."""
    yield thin_session
    await thin_session.clean()


@pytest_asyncio.fixture(loop_scope="session")
async def file(tmp_path: Path) -> AsyncIterator[FileStorage]:
    """The sparse files."""
    storage = FileStorage(tmp_path)
    yield storage
    await storage.clean()


@pytest.fixture(params=["file", pytest.param("thin", marks=pytest.mark.kernel)])
def storage(request: pytest.FixtureRequest) -> Storage:
    """Each storage class in turn."""
    chosen: Storage = request.getfixturevalue(request.param)
    return chosen
