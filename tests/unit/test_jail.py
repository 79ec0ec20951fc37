"""The limits that a program in the jail has; what it sees is tested with qemu-img itself."""

from __future__ import annotations

import subprocess
import sys

from blockd.domain.units import MIB

_MANY_THREADS = """
import threading
ends = threading.Event()
threads = [threading.Thread(target=ends.wait, daemon=True) for _ in range(64)]
for thread in threads:
    thread.start()
ends.set()
print(len(threads))
"""
_LIMITED = f"""
import os, sys
from blockd.host.jail import Jail
Jail({{"memory_bytes": {512 * MIB}, "cpu_s": 60, "disk": None}})._limits()
os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
"""


def test_as_many_threads_as_qemu_img_has_for_its_io_fit_into_half_of_the_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, _MANY_THREADS],
        capture_output=True,
        text=True,
        env={"MALLOC_ARENA_MAX": "2"},
        timeout=60,
        check=False,
    )
    assert done.stdout == "64\n", done.stderr
