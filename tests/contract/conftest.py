"""The drivers under contract: `file` always, `thin` and `thick` in the lab."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.contract.lab_drivers import LAB_DISK, THICK_DISK, open_thick, open_thin
from tests.contract.storage import FileStorage, LvmStorage, Storage, ThickStorage, ThinStorage
from tests.support.thick_files import ThickFileDriver


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def thick_session() -> AsyncIterator[ThickStorage]:
    """As `thin_session`."""
    if not THICK_DISK.is_block_device():
        pytest.skip(f"no {THICK_DISK}: run inside scripts/lab with three disks")
    async with open_thick(THICK_DISK) as storage:
        yield storage


@pytest_asyncio.fixture(loop_scope="session")
async def thick(thick_session: ThickStorage) -> AsyncIterator[ThickStorage]:
    """The thick driver; the volume group is empty again after each test."""
    yield thick_session
    await thick_session.clean()


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


@pytest.fixture(params=["thin", "thick"])
def lvm(request: pytest.FixtureRequest) -> LvmStorage:
    """Those with devices."""
    chosen: LvmStorage = request.getfixturevalue(request.param)
    return chosen


@pytest_asyncio.fixture(loop_scope="session")
async def file(tmp_path: Path) -> AsyncIterator[FileStorage]:
    """The sparse files."""
    storage = FileStorage(tmp_path)
    yield storage
    await storage.clean()


@pytest_asyncio.fixture(loop_scope="session")
async def thick_file(tmp_path: Path) -> AsyncIterator[FileStorage]:
    """The same as a thick class."""
    storage = FileStorage(tmp_path, ThickFileDriver)
    yield storage
    await storage.clean()


_THIN = ["file", pytest.param("thin", marks=pytest.mark.kernel)]
_THICK = ["thick_file", pytest.param("thick", marks=pytest.mark.kernel)]


@pytest.fixture(params=_THIN + _THICK)
def storage(request: pytest.FixtureRequest) -> Storage:
    """Each storage class in turn."""
    chosen: Storage = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture(params=_THIN)
def thin_storage(request: pytest.FixtureRequest) -> Storage:
    """Those that know what is allocated, and revert by swapping disks."""
    chosen: Storage = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture(params=_THICK)
def thick_storage(request: pytest.FixtureRequest) -> Storage:
    """Those without a pool."""
    chosen: Storage = request.getfixturevalue(request.param)
    return chosen
