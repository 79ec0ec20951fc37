"""The front watchdog: whom it resumes, and when; on the kernel's devices in tests/kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

import pytest

from blockd.storage import front_watchdog

DEADLINE_S = 10.0


class Kernel:
    """Takes the place of the ioctl: what is resumed is noted, the device `hung` hangs."""

    def __init__(self) -> None:
        self.resumed: dict[str, Event] = {name: Event() for name in ("hung", "one", "two")}
        self.answers = Event()

    def resume(self, control: int, uuid: str) -> None:
        del control
        if uuid == "hung":
            assert self.answers.wait(DEADLINE_S)
        self.resumed[uuid].set()


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(front_watchdog, "resume", kernel.resume)
    return kernel


@contextmanager
def told(*lines: str) -> Iterator[int]:
    """The watchdog at work; its stdin ends with the block, at the latest."""
    reads, writes = os.pipe()
    thread = Thread(target=front_watchdog.watch, args=(reads, -1))
    thread.start()
    try:
        os.write(writes, "".join(f"{line}\n" for line in lines).encode())
        yield writes
    finally:
        os.close(writes)
        thread.join(DEADLINE_S)
        os.close(reads)
        assert not thread.is_alive()


@pytest.mark.parametrize("ends", [False, True], ids=["at the deadline", "with the daemon"])
def test_front_whose_resume_hangs_keeps_no_other_suspended(kernel: Kernel, ends: bool) -> None:
    after_s = 3600 if ends else 0
    with told(*(f"arm {after_s} {name}" for name in ("one", "hung", "two"))) as writes:
        if ends:
            os.dup2(os.open("/dev/null", os.O_WRONLY), writes)
        try:
            for name in ("one", "two"):
                assert kernel.resumed[name].wait(DEADLINE_S / 2), f"{name} is suspended"
            assert not kernel.resumed["hung"].is_set()
        finally:
            kernel.answers.set()
    assert kernel.resumed["hung"].wait(DEADLINE_S)


def test_front_that_was_disarmed_is_left_alone(kernel: Kernel) -> None:
    with told("arm 3600 one", "arm 3600 two", "disarm one"):
        pass
    assert kernel.resumed["two"].is_set()
    assert not kernel.resumed["one"].is_set()
