"""What a start makes of an LVM that does not give the copy of a sound catalog."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from blockd.catalog import open_catalog
from blockd.daemon import lost_catalog
from blockd.daemon.groups import Groups
from blockd.domain.errors import StartError, StorageError, StorageOverdue
from blockd.storage.lvm_report import LogicalVolume
from tests.support.service import file_config

OVERDUE = StorageOverdue("lvs did not end within 4 s")


class QuietGroups:
    """LVM is late. Nothing is suspended, and no LVM of an earlier daemon runs."""

    mapper = None

    def resume(self, catalog_id: str) -> None:
        pass

    async def calm(self) -> None:
        pass

    def lvm(self, vg: str) -> QuietGroups:
        return self

    async def lvs(self) -> list[LogicalVolume]:
        raise OVERDUE


async def start(root: Path, monkeypatch: pytest.MonkeyPatch, error: StorageError) -> None:
    """With a sound catalog, the copy of which LVM refuses so."""

    class Refused:
        def __init__(self, *_: object) -> None:
            pass

        async def existing(self) -> None:
            raise error

    monkeypatch.setattr(lost_catalog, "CatalogLv", Refused)
    config = file_config(root)
    async with open_catalog(config.catalog.path):
        pass
    await lost_catalog.secure_catalog(config, cast("Groups", QuietGroups()))


async def test_copy_that_lvm_refuses_keeps_no_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await start(tmp_path, monkeypatch, StorageError("lvchange: a disk is missing"))


async def test_start_ends_beside_an_lvm_that_still_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StartError, match=r"^volume group files: lvs did not end within 4 s$"):
        await start(tmp_path, monkeypatch, OVERDUE)


async def test_late_lvm_is_not_taken_for_a_volume_group_that_is_not_there(tmp_path: Path) -> None:
    groups = cast("Groups", QuietGroups())
    with pytest.raises(StartError, match=r"^volume group files: lvs did not end within 4 s$"):
        await lost_catalog.secure_catalog(file_config(tmp_path), groups)
