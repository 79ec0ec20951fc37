"""Thousands of create and delete cycles, from the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.guest import Guests
from tests.faults.notes import read_notes

_DISKS = ("1G", "256M")
_GUEST_S = 4 * 3600.0


@dataclass(frozen=True)
class Sample:
    """What there was when nothing was under way; those of one `boot` have one daemon."""

    boot: int
    cycles: int
    devices: int
    descriptors: int
    thin_ids: int
    uploads: int
    memory_kib: int
    took_s: float


class Cycles:
    """The folder holds the samples; a guest that was stopped begins again behind the last one."""

    def __init__(self, folder: Path, cpu: int | None = None) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._guests = Guests(folder, cpu)
        self.stop = self._guests.stop

    def run(self, count: int, news: Callable[[Sample], None] = lambda _: None) -> list[Sample]:
        """Go on until so many are done.

        Raises:
            AssertionError: a guest ended badly.
        """
        samples = self.samples()
        done = samples[-1].cycles if samples else 0
        if done < count:
            for disk in self.folder.glob("ubd*.img"):
                disk.unlink()
            argv = ("tests.faults.cycles_guest", str(self.folder), str(done), str(count))
            status, said = self._guests.run(_DISKS, argv, _GUEST_S)
            assert status == 0, said
            news(self.samples()[-1])
        return self.samples()

    def samples(self) -> list[Sample]:
        """Up to now."""
        return [Sample(**note) for note in read_notes(self.folder / "cycles.jsonl")]


def growth(samples: Sequence[Sample]) -> list[str]:
    """What the longest-lived daemon had more of in its second half than in its first, at the least.

    The least, as a connection may just have been open. Of memory see `memory_slope`.
    """
    run = _longest(samples)
    halves = run[: len(run) // 2], run[len(run) // 2 :]
    found = []
    for name in ("devices", "descriptors", "thin_ids", "uploads"):
        first, second = (min((getattr(s, name) for s in half), default=0) for half in halves)
        if halves[0] and second > first:
            found.append(f"{name} {first} to {second}")
    return found


def _longest(samples: Sequence[Sample]) -> list[Sample]:
    boots = {sample.boot for sample in samples}
    runs = [[sample for sample in samples if sample.boot == boot] for boot in boots]
    return max(runs, key=len, default=[])


def memory_slope(samples: Sequence[Sample]) -> float:
    """KiB for 1,000 cycles: least squares over the longest run of one daemon, less its start."""
    run = _longest(samples)[1:]
    if len(run) < 2:
        return float("nan")
    xs, ys = [sample.cycles for sample in run], [sample.memory_kib for sample in run]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    above = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return 1000 * above / sum((x - mean_x) ** 2 for x in xs)
