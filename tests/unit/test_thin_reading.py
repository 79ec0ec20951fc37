"""The pool's mappings by a script in place of `thin_dump`: the snapshot is always given back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockd.domain.errors import StorageError
from blockd.storage import thin_reading
from blockd.storage.thin_reading import ThinReading


class Mapper:
    """Takes messages; `gate` holds up the reservation."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.gate, self.reserving = threading.Event(), threading.Event()
        self.gate.set()
        self.refuses = False

    def message(self, _uuid: str, text: str) -> None:
        if text == "reserve_metadata_snap":
            self.reserving.set()
            assert self.gate.wait(10)
            if self.refuses:
                raise StorageError("Device or resource busy")
        self.told.append(text)


Make = Callable[[str], tuple[ThinReading, Mapper]]
BOTH = ["reserve_metadata_snap", "release_metadata_snap"]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    def make(script: str) -> tuple[ThinReading, Mapper]:
        path, mapper, none = tmp_path / "thin_dump", Mapper(), Any
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(thin_reading, "find_tool", lambda _name, _package: str(path))
        reading = ThinReading("vg", "pool", none, mapper, none, none, none)  # type: ignore[arg-type]
        return reading, mapper

    return make


async def dumped(reading: ThinReading) -> bytes:
    async with reading.alone(), reading.reserved("uuid"):
        return b"".join([piece async for piece in reading.dump(99)])


async def test_dump_is_what_was_printed_with_the_pools_size(make: Make) -> None:
    script = """echo '<superblock time="0" nr_data_blocks="0">'; echo "$@"; echo '</superblock>'"""
    reading, mapper = make(script)
    line = b"--metadata-snap /dev/mapper/vg-pool_tmeta"
    head = b'<superblock time="0" nr_data_blocks="99">\n'
    assert await dumped(reading) == head + line + b"\n</superblock>\n"
    assert mapper.told == BOTH


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo bad metadata >&2; exit 1", "ended with status 1: bad metadata"),
        ("echo '<superblock>'", "ends in the middle"),
        ("echo '<superblock>'; kill -s SEGV $$", "signal 11"),
    ],
)
async def test_dump_that_fails_is_an_error_and_gives_the_snapshot_back(
    make: Make, script: str, why: str
) -> None:
    reading, mapper = make(script)
    with pytest.raises(StorageError, match=why):
        await dumped(reading)
    assert mapper.told == BOTH


async def test_snapshot_that_another_holds_is_not_released(make: Make) -> None:
    reading, mapper = make("exit 0")
    mapper.refuses = True
    with pytest.raises(StorageError, match="busy"):
        await dumped(reading)
    assert mapper.told == []


async def test_reservation_whose_waiter_is_cancelled_is_given_back(make: Make) -> None:
    reading, mapper = make("exit 0")
    mapper.gate.clear()
    waiting = asyncio.create_task(dumped(reading))
    await asyncio.to_thread(mapper.reserving.wait, 10)
    waiting.cancel()
    await asyncio.sleep(0)
    mapper.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert mapper.told == BOTH


async def test_second_one_waits_for_the_first(make: Make) -> None:
    reading, mapper = make("echo '</superblock>'")
    await asyncio.gather(dumped(reading), dumped(reading))
    assert mapper.told == BOTH * 2
