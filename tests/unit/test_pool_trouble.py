"""What is the matter with a pool, and what people are told of it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blockd.domain.pool import PoolTrouble
from blockd.domain.pool_state import PoolState
from blockd.domain.pool_trouble import PAGE, trouble_line
from tests.unit.test_pool_growth import POOL

CASES: list[tuple[dict[str, Any], PoolTrouble | None, str]] = [
    ({}, None, "is well"),
    (
        {"mode": "out_of_data_space", "when_full": "queue"},
        PoolTrouble.OUT_OF_DATA_SPACE,
        "writes wait, and fail after a minute",
    ),
    (
        {"mode": "out_of_data_space", "when_full": "error"},
        PoolTrouble.OUT_OF_DATA_SPACE,
        "writes fail",
    ),
    (
        {"mode": "ro", "metadata_used_bytes": POOL.metadata_size_bytes},
        PoolTrouble.OUT_OF_METADATA_SPACE,
        "no metadata are left",
    ),
    ({"mode": "ro"}, PoolTrouble.READ_ONLY, "read-only"),
    ({"mode": "ro", "needs_check": True}, PoolTrouble.NEEDS_CHECK, "need a check"),
    ({"mode": "fail", "needs_check": True}, PoolTrouble.FAILED, "given up by the kernel"),
    ({"transaction_ids": (3, 4)}, PoolTrouble.TRANSACTION_ID, "transaction id 3, LVM expects 4"),
    ({"mode": "inactive", "fault": "lvchange: no"}, PoolTrouble.INACTIVE, "(lvchange: no)"),
]


@pytest.mark.parametrize(("changes", "trouble", "told"), CASES)
def test_trouble_is_recognised_and_named(
    changes: dict[str, Any], trouble: PoolTrouble | None, told: str
) -> None:
    use = replace(POOL, **changes)
    assert use.trouble is trouble
    line = trouble_line(use)
    assert "vg/pool" in line
    assert told in line
    assert "\n" not in line


@pytest.mark.parametrize("trouble", PoolTrouble)
def test_each_trouble_has_a_section_with_that_anchor_in_the_documentation(
    trouble: PoolTrouble,
) -> None:
    page = (Path(__file__).parents[2] / PAGE).read_text("utf-8")
    (changes,) = [case[0] for case in CASES if case[1] is trouble][:1]
    anchor = re.search(r"#([a-z-]+)\)", trouble_line(replace(POOL, **changes)))
    assert anchor
    titles = re.findall(r"^## (.+)$", page, re.MULTILINE)
    assert anchor[1] in [
        re.sub(r"[^a-z -]", "", title.lower()).replace(" ", "-") for title in titles
    ]


def test_pool_that_cannot_grow_is_a_problem_only_when_it_should_grow() -> None:
    state = PoolState(POOL, "extend_percent is 0", 0, False, None, None, None)
    assert state.problems == []
    (line,) = replace(state, is_stuck=True).problems
    assert "above its low-water mark and cannot be extended (extend_percent is 0)" in line


def test_full_pool_that_cannot_grow_has_two_problems_and_a_failed_one_has_one() -> None:
    full = replace(POOL, mode="out_of_data_space")
    assert len(PoolState(full, "no room", 0, True, None, None, None).problems) == 2
    failed = replace(POOL, mode="fail")
    assert len(PoolState(failed, "in trouble", 0, True, None, None, None).problems) == 1
