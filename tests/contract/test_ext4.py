"""A mounted file system: its snapshot is clean, because the front was frozen."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from blockd.domain.errors import InUse
from blockd.domain.units import MIB
from tests.contract.storage import LvmStorage

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.kernel]

SIZE = 64 * MIB
DEADLINE_S = 60


def run(*argv: str) -> str:
    """Run a tool; its output. Fails with what it said."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{argv}: {done.returncode}: {done.stdout} {done.stderr}")
    return done.stdout


@contextmanager
def mounted(device: Path, directory: Path) -> Iterator[Path]:
    """A file system at `directory` while the block lasts."""
    directory.mkdir()
    run("mount", "-t", "ext4", str(device), str(directory))
    try:
        yield directory
    finally:
        run("umount", str(directory))


@contextmanager
def busy(directory: Path) -> Iterator[threading.Semaphore]:
    """A thread that makes, fills, syncs, renames and removes files; one release per file."""
    stop, made = threading.Event(), threading.Semaphore(0)

    def write() -> None:
        number = 0
        while not stop.is_set():
            path = directory / f"file-{number % 16}"
            with path.open("wb") as file:
                file.write(os.urandom(4096) * (number % 7 + 1))
                if number % 3 == 0:
                    os.fsync(file.fileno())
            path.rename(directory / f"renamed-{number % 16}")
            (directory / f"renamed-{(number + 5) % 16}").unlink(missing_ok=True)
            number += 1
            made.release()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield made
    finally:
        stop.set()
        thread.join()


async def test_snapshot_of_a_mounted_busy_ext4_is_clean_without_replay(
    lvm: LvmStorage, tmp_path: Path
) -> None:
    front = await lvm.volume(SIZE)
    run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(lvm.path(front)))
    async with asyncio.timeout(DEADLINE_S):
        with mounted(lvm.path(front), tmp_path / "mnt") as directory:
            assert lvm.driver.is_open(front.volume_id)
            with pytest.raises(InUse):
                await lvm.disconnect(front)
            with busy(directory) as made:
                for _ in range(20):
                    assert await asyncio.to_thread(made.acquire, timeout=DEADLINE_S)
                snapshot = await lvm.snapshot(front)
                while made.acquire(blocking=False):
                    pass
                # Thawed: writing goes on.
                assert await asyncio.to_thread(made.acquire, timeout=DEADLINE_S)
        assert not lvm.driver.is_open(front.volume_id)
    clone = await lvm.clone(snapshot, SIZE)
    assert "needs_recovery" not in run("dumpe2fs", "-h", str(lvm.path(clone)))
    run("e2fsck", "-fn", str(lvm.path(clone)))
    with mounted(lvm.path(clone), tmp_path / "clone") as directory:
        assert any(path.name.startswith("renamed-") for path in directory.iterdir())
