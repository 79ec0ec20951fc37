"""`docs/faults.md`, written from what was measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.faults.campaign import Tally
from tests.faults.cycles import Sample, growth, memory_slope
from tests.faults.replay import Replay

_HEAD = """\
# Faults, as measured

Written by `scripts/faults --write` from the last run of each part; not edited by hand.

- **Replay** (`scripts/faults --replay`) records every write of a daemon that does each verb,
  starts a daemon on the disk as it was between two writes, and compares all there is.
- **Campaign** (`scripts/faults --seed S --rounds N`): clients do random operations while the
  daemon is killed, the host loses power, a disk fails, a pool or its metadata is full, or the
  object store misbehaves. After each strike the daemon starts again, and all there is is compared
  with a model.
- **Cycles** (`scripts/faults --cycles N`) creates and erases volumes, and counts what must not
  grow.

Each goes on where it was stopped with `--resume`. `scripts/test` runs 150 points of the replay and
a short campaign.
"""


def write(path: Path, replays: Sequence[Replay], tally: Tally, samples: Sequence[Sample]) -> None:
    """All three parts; one that was not run says so."""
    lines = [*_replay(replays), *_campaign(tally), *_cycles(samples)]
    path.write_text("\n".join([_HEAD, *lines]) + "\n", "utf-8")


def _replay(replays: Sequence[Replay]) -> Iterator[str]:
    yield "## Replay\n"
    yield "Volume group and catalog are two slices of one device: a point cuts both at one instant."
    yield "It is good when all that was answered is there with the right bytes, nothing is left,"
    yield "and the next create and delete succeed.\n"
    yield "| class | points in the log | tried | of which behind a flush | not good |"
    yield "|---|---:|---:|---:|---:|"
    for replay in replays:
        results = replay.results()
        if results:
            points = {point.entries: point for point in replay.points()}
            flushes = sum(points[result.entries].is_barrier for result in results)
            bad = sum(bool(result.failure) for result in results)
            yield f"| {replay.kind} | {len(points)} | {len(results)} | {flushes} | {bad} |"
        else:
            yield f"| {replay.kind} | not run | | | |"
    tried: Counter[str] = Counter()
    bad_of: Counter[str] = Counter()
    for replay in replays:
        for result in replay.results():
            verb = _verb(result.op)
            tried[verb] += 1
            bad_of[verb] += bool(result.failure)
    yield "\n| during | points | not good |\n|---|---:|---:|"
    yield from (f"| {verb} | {tried[verb]} | {bad_of[verb]} |" for verb in sorted(tried))


def _verb(op: str) -> str:
    two = ("delete", "undelete", "the")
    words = op.split()
    if op.startswith("revert for good"):
        return "revert for good"
    return " ".join(words[: 2 if words[0] in two or op.startswith("keep") else 1])


def _campaign(tally: Tally) -> Iterator[str]:
    yield "\n## Campaign\n"
    if not tally.rounds:
        yield "Not run."
        return
    yield f"{tally.rounds} rounds, {tally.operations} operations, {tally.strikes.total()} strikes;"
    yield "a campaign ends with the first difference, so each strike counted here ended well.\n"
    yield "| strike | times |\n|---|---:|"
    yield from (f"| {kind} | {count} |" for kind, count in sorted(tally.strikes.items()))
    yield "\n| operations that | |\n|---|---:|"
    words = {
        "done": "were done",
        "answered": "were answered, and the daemon died",
        "begun": "were cut before an answer",
        "unknown": "ended with a broken connection or device",
        "failed": "failed while storage was broken",
        "failed after it was answered": "failed after the answer while storage was broken",
    }
    for outcome, count in sorted(tally.outcomes.items()):
        yield f"| {words.get(outcome, f'were {outcome}')} | {count} |"


def _cycles(samples: Sequence[Sample]) -> Iterator[str]:
    yield "\n## Cycles\n"
    if not samples:
        yield "Not run."
        return
    first, last = samples[0], samples[-1]
    grew = ", ".join(growth(samples)) or "nothing"
    yield f"{last.cycles} cycles of create and delete. What grew: {grew}."
    slope, settled = memory_slope(samples), memory_slope(samples[len(samples) // 2 :])
    yield f"Memory: {slope:+.0f} KiB for 1,000 cycles, in the second half {settled:+.0f}.\n"
    yield "| | at the first count | at the last |\n|---|---:|---:|"
    for name in ("cycles", "devices", "descriptors", "thin_ids", "uploads", "memory_kib"):
        yield f"| {name.replace('_', ' ')} | {getattr(first, name)} | {getattr(last, name)} |"
