"""A volume group on the lab's second disk, shared by the tests of one module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A place for daemons, with a pool; each test starts its own daemon there."""
    if not Path("/dev/ubdb").is_block_device():
        pytest.skip("no /dev/ubdb: run inside scripts/lab with two disks")
    made = Place.fresh(tmp_path_factory.mktemp("place"))
    yield made
    made.remove_vg()
