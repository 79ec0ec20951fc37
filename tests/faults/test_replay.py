"""The power gone at 150 places between two writes to the disk: nothing lost, nothing wedged.

All places, more than two thousand: `scripts/faults --replay`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.replay import KINDS, Replay

pytestmark = pytest.mark.lab

POINTS = 75


@pytest.mark.parametrize("kind", KINDS)
def test_power_cut_between_any_two_writes_leaves_all_that_was_answered(
    tmp_path: Path, kind: str
) -> None:
    replay = Replay(tmp_path / kind, kind)
    replay.record()
    results = replay.replay(POINTS)
    failed = [result for result in results if result.failure]
    print(f"{kind}: {len(results)} crash points of {len(replay.points())}")
    assert len(results) == POINTS
    assert not failed, "\n".join(f"{r.entries} {r.op}: {r.failure}" for r in failed)
