"""Status lines of thin pools, as the kernel writes them."""

from __future__ import annotations

import pytest

from blockd.domain.errors import StorageError
from blockd.storage.pool_status import parse_pool_status


def test_healthy_pool() -> None:
    line = "4 1651/16384 7/16384 - rw no_discard_passdown queue_if_no_space - 1024 "
    status = parse_pool_status(line)
    assert status.transaction_id == 4
    assert (status.metadata_used_bytes, status.metadata_bytes) == (1651 * 4096, 16384 * 4096)
    assert (status.data_used_blocks, status.data_blocks) == (7, 16384)
    assert (status.mode, status.needs_check) == ("rw", False)


def test_pool_in_trouble() -> None:
    line = (
        "9 100/200 16384/16384 - out_of_data_space discard_passdown error_if_no_space needs_check 1"
    )
    status = parse_pool_status(line)
    assert (status.mode, status.needs_check) == ("out_of_data_space", True)


def test_failed_pool_has_no_numbers() -> None:
    status = parse_pool_status("Fail")
    assert (status.mode, status.needs_check, status.data_blocks) == ("fail", True, 0)


@pytest.mark.parametrize("line", ["", "x 1/2 3/4 - rw", "1 2 3", "1 a/b 3/4 - rw -"])
def test_other_lines_are_errors(line: str) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        parse_pool_status(line)
