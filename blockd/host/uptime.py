"""How long the host is up, which no clock that can be set says."""

from __future__ import annotations

import time
from pathlib import Path


def boot_id() -> str:
    """Another one after each boot (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def uptime_s() -> float:
    """Seconds since the boot, those asleep included (clock_gettime(2), CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
