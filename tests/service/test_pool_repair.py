"""A pool is repaired where nothing can be lost by it, and anything else is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from blockd.domain.errors import BackupFailed, NotFound, PreconditionFailed, StorageError
from tests.support.service import running


@pytest.mark.parametrize(
    "says",
    [
        {"needs_check": True},
        {"mode": "inactive", "fault": "why"},
        {"mode": "fail"},
        {"mode": "ro", "metadata_used_bytes": 1},
    ],
)
async def test_pool_in_trouble_is_taken_down_and_up_once_its_metadata_are_saved(
    tmp_path: Path, says: dict[str, Any]
) -> None:
    async with running(tmp_path) as run:
        run.driver.pool_says = dict(says)
        assert (await run.service.pool_repair.repair("sbs")).use.trouble is None
        assert run.driver.pool_says == {}
        (backup,) = await run.service.backups.listed()
        assert "vg" in backup.kinds


@pytest.mark.parametrize(
    ("says", "told"),
    [
        ({}, "is well: there is nothing to repair"),
        ({"mode": "out_of_data_space"}, "it goes on when there is room"),
        ({"transaction_ids": (5, 9)}, "docs/pool-trouble.md#transaction-id"),
    ],
)
async def test_what_a_repair_does_not_end_is_told_and_nothing_is_touched(
    tmp_path: Path, says: dict[str, Any], told: str
) -> None:
    async with running(tmp_path) as run:
        run.driver.pool_says = dict(says)
        with pytest.raises(PreconditionFailed, match=told):
            await run.service.pool_repair.repair("sbs")
        assert run.driver.pool_says == says
        assert await run.service.backups.listed() == []


async def test_failed_repair_says_why_and_an_unknown_class_is_not_found(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        run.driver.pool_says = {"needs_check": True}
        run.driver.fail_next["repair_pool"] = StorageError("Check of pool failed")
        with pytest.raises(PreconditionFailed, match="is not repaired: Check of pool failed; see"):
            await run.service.pool_repair.repair("sbs")
        with pytest.raises(NotFound):
            await run.service.pool_repair.repair("nvme")


async def test_pool_is_left_alone_when_its_metadata_cannot_be_saved(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        run.driver.pool_says = {"needs_check": True}
        run.service.backups._folder._path.write_text("a file where the folder should be")
        with pytest.raises(BackupFailed):
            await run.service.pool_repair.repair("sbs")
        assert run.driver.pool_says == {"needs_check": True}
