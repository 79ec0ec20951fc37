"""Places for daemons that have little patience with LVM, and the stand-in that tries it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.lab_drivers import THICK_DISK
from tests.support.daemon import Place
from tests.support.lvm_stand_in import StandIn, lvm_stand_in
from tests.support.object_store import object_store
from tests.support.small_pool import pool_on


@pytest.fixture
def thin_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A thin class with object storage, and little patience with LVM."""
    if not Path("/dev/ubdb").is_block_device():
        pytest.skip("no /dev/ubdb: run inside scripts/lab with two disks")
    with object_store(tmp_path_factory.mktemp("store")) as server:
        place = Place.fresh(
            tmp_path_factory.mktemp("thin"),
            trash_keep="0s",
            max_suspend="3s",
            command_timeout="4s",
            object_storage=server,
        )
        yield place
        place.remove_vg()


@pytest.fixture
def thick_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The same with a thick class."""
    if not THICK_DISK.is_block_device():
        pytest.skip(f"no {THICK_DISK}: run inside scripts/lab with three disks")
    place = Place.fresh(
        tmp_path_factory.mktemp("thick"),
        trash_keep="0s",
        max_suspend="3s",
        command_timeout="4s",
        kind="thick",
        disk=THICK_DISK,
        snapshot_size_least="32MiB",
    )
    yield place
    place.remove_vg()


@pytest.fixture
def small_place(tmp_path: Path) -> Iterator[Place]:
    """A small pool with room to grow in small steps, and little patience with LVM."""
    place = Place(
        state=tmp_path,
        run=tmp_path / "run",
        trash_keep="0s",
        max_suspend="3s",
        command_timeout="4s",
        class_options="extend_percent = 5",
    )
    place.run.mkdir()
    with pool_on(place, place.disk):
        yield place


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """In place of LVM for all daemons of this module."""
    with lvm_stand_in(tmp_path_factory.mktemp("lvm")) as made:
        yield made
