"""Run a part inside the lab, and take its results home as a line of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_PROJECT = Path(__file__).resolve().parents[2]


class LabFailed(Exception):
    """The lab, or the part within, ended with another status than 0; standard error says why."""


def run_in_lab(
    module: str,
    arguments: Sequence[str],
    *,
    trash_keep: str,
    sections: str = "",
    disks: Sequence[str] = ("8G",),
) -> Any:
    """`python -m module arguments` beside a daemon in the lab; what it printed, decoded.

    Args:
        trash_keep: the daemon's `[trash] keep`.
        sections: more of its configuration, in place of the lab's own.
        disks: their sizes; the lab makes a pool on the first.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as extra:
        extra.write(f'[trash]\nkeep = "{trash_keep}"\n{sections}')
        extra.flush()
        done = subprocess.run(
            [
                _PROJECT / "scripts/lab",
                *(f"--disk={size}" for size in disks),
                *("--blockd", "--config-extra", extra.name),
                *("--", "python", "-m", module, *arguments),
            ],
            cwd=_PROJECT,
            stdout=subprocess.PIPE,
            check=False,
        )
    if done.returncode != 0:
        raise LabFailed(f"{module} in the lab: status {done.returncode}")
    return json.loads(done.stdout)


def progress(text: str) -> None:
    """A line for whoever waits; standard output is for results."""
    sys.stderr.write(f"bench: {text}\n")
    sys.stderr.flush()
