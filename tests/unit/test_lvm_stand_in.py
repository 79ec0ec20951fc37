"""The stand-in for LVM sees two calls at once, and no others: natively, with `cat` for LVM."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.lvm_stand_in import StandIn, script


def test_calls_at_once_are_seen_and_calls_one_after_another_are_not(tmp_path: Path) -> None:
    for name in ("noted", "real", "bin"):
        (tmp_path / name).mkdir()
    shutil.copy("/bin/cat", tmp_path / "real" / "lvm")
    lvm = tmp_path / "bin" / "lvm"
    lvm.write_text(script(tmp_path / "noted", f"{tmp_path}/real/lvm"))
    lvm.chmod(0o755)
    os.mkfifo(tmp_path / "end")
    stand_in = StandIn(tmp_path / "noted")
    try:
        stand_in.plan({})
        for _ in range(2):
            subprocess.run([lvm, "/dev/null"], check=True)
        ended = subprocess.Popen([lvm, "/dev/null"])
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # and nobody has asked how
        subprocess.run([lvm, "/dev/null"], check=True)
        ended.wait()
        stand_in.expect_one_at_a_time()

        first = subprocess.Popen([lvm, tmp_path / "end"])
        deadline = time.monotonic() + 30
        while len(stand_in.calls()) < 5:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        subprocess.run([lvm, "/dev/null"], check=True)
        (tmp_path / "end").write_text("now")
        assert first.wait(30) == 0
        with pytest.raises(AssertionError, match=r"call 6, .* began while call 5, .* ran"):
            stand_in.expect_one_at_a_time()
    finally:
        stand_in.close()
