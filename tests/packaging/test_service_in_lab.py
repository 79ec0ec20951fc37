"""blockd under a real systemd, within all that its unit takes away from it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(
        not Path("/lib/systemd/systemd").exists(), reason="there is no systemd on this machine"
    ),
]


def test_service_works_restarts_and_is_activated_under_systemd() -> None:
    guest = ["scripts/lab", "--", "bash", "tests/packaging/systemd_guest.sh"]
    said = subprocess.run(guest, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    assert said.stdout.splitlines()[-1] == "OK"
