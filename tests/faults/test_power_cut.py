"""The plug pulled at every side effect of every verb; each cut ends a guest on the same disks."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.faults import chain
from tests.faults.scenarios import SCENARIOS

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[2]
POWER_CUT = 75  # what scripts/lab ends with when the guest died


#: Those whose disks a thick class treats otherwise; the others were killed at each side effect.
THICK_VERBS = ("clone", "group", "revert", "erase", "erase snapshot")
#: With --full all of them; the crash replay (test_replay.py) cuts between any two writes of each.
ALWAYS = ("create",)
CASES = [
    *(
        pytest.param("thin", verb, id=verb, marks=() if verb in ALWAYS else pytest.mark.full)
        for verb in SCENARIOS
    ),
    *(
        pytest.param("thick", verb, id=f"thick {verb}", marks=pytest.mark.full)
        for verb in THICK_VERBS
    ),
]


@pytest.mark.parametrize(("kind", "verb"), CASES)
def test_power_cut_at_each_side_effect_leaves_catalog_and_vg_in_agreement(
    tmp_path: Path, kind: str, verb: str
) -> None:
    recorded = _boot(tmp_path, kind, verb, "record", expect=0)
    events = [line for line in recorded.splitlines() if line.startswith(chain.EVENT_WORDS)]
    points = chain.fatal_points(events, "power")
    assert points
    for at in points:
        print(f"{verb}: power cut {events[at]}", flush=True)
        _boot(tmp_path, kind, verb, chain.named(events, at), expect=POWER_CUT)
    _boot(tmp_path, kind, verb, "end", expect=0)


def _boot(disks: Path, kind: str, verb: str, step: str, expect: int) -> str:
    argv = [
        *(ROOT / "scripts/lab", "--disk", "2G", "--disk", "64M", "--disk", "64M"),
        *("--disk-dir", disks, "--"),
        *("python", "-m", "tests.faults.power_guest", disks, kind, verb, step),
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
    said = f"{kind} {verb} {step}: {done.stdout[-4000:]}\n{done.stderr[-6000:]}"
    assert done.returncode == expect, said
    return done.stdout
