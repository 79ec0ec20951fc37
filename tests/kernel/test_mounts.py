"""Mounting and unmounting a volume is told by the stream of events within a second."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, Place

pytestmark = pytest.mark.kernel

MIB = 1024**2


def test_mount_and_unmount_are_told_within_a_second(place: Place, tmp_path: Path) -> None:
    with Daemon(place) as daemon:
        volume_id = daemon.api.create_volume("v", 32 * MIB)
        path = daemon.api.device(volume_id)
        subprocess.run(["/sbin/mkfs.ext4", "-q", path], check=True)

        # A look may have seen mkfs: then that it has ended is told within ten seconds.
        def newest() -> str:
            query = f"/host/v1/events?resource_id={volume_id}&last_event_id=oldest&follow=false"
            return daemon.api.last_status(query)

        deadline = time.monotonic() + 30
        while newest() != "available":
            assert time.monotonic() < deadline
            time.sleep(0.2)
        with daemon.api.following(volume_id) as events:
            for argv, status in (
                (["/bin/mount", path, str(tmp_path)], "in_use"),
                (["/bin/umount", str(tmp_path)], "available"),
            ):
                subprocess.run(argv, check=True)
                began = time.monotonic()
                told = next(one for one in events if one["status"] == status)
                took_s = time.monotonic() - began
                print(f"{status} told after {took_s:.2f} s: {json.dumps(told)}")
                assert told["resource"]["status"] == status
                assert took_s < 1
