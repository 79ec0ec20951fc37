"""The plug pulled in the middle of a revert's merge: the volume has the new bytes, all of them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[2]
POWER_CUT = 75  # what scripts/lab ends with when the guest died


@pytest.mark.parametrize("when", ["marked", "merging"])
def test_power_cut_in_a_merge_ends_in_the_snapshots_bytes(tmp_path: Path, when: str) -> None:
    _boot(tmp_path, when, expect=POWER_CUT)
    _boot(tmp_path, "end", expect=0)


def _boot(disks: Path, step: str, expect: int) -> None:
    argv = [
        *(ROOT / "scripts/lab", "--disk", "2G", "--disk-dir", disks, "--"),
        *("python", "-m", "tests.faults.merge_guest", step),
    ]
    done = subprocess.run(
        [str(arg) for arg in argv],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == expect, f"{step}: {done.stdout[-4000:]}\n{done.stderr[-6000:]}"
    print(done.stdout)
