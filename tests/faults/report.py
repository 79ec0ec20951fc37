"""`docs/faults.md`, written from what was measured."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.faults.campaign import Tally
from tests.faults.cycles import Sample, growth, memory_slope
from tests.faults.lvm_cases import Case
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
- **LVM** (`scripts/test --full tests/faults/test_lvm_misbehaves*.py`): each LVM process of each
  operation fails, crashes, hangs, answers nonsense or finds its lock held.

The first three go on where they were stopped with `--resume`. `scripts/test` runs 150 points of the
replay and a short campaign. A part that has no results on the machine that writes this stays as it
was written last.
"""


def write(
    path: Path,
    replays: Sequence[Replay],
    tally: Tally,
    samples: Sequence[Sample],
    cases: Sequence[Case],
) -> None:
    """All four parts; one without results stays as it is, or says that it was not run."""
    was = path.read_text("utf-8") if path.exists() else ""
    parts = {
        "Replay": [*_replay(replays)] if any(replay.results() for replay in replays) else [],
        "Campaign": [*_campaign(tally)] if tally.rounds else [],
        "Cycles": [*_cycles(samples)] if samples else [],
        "LVM": [*_lvm(cases)] if cases else [],
    }
    text = _HEAD
    for title, lines in parts.items():
        body = "\n".join(lines) or _body(was, title) or "Not run."
        text += f"\n## {title}\n\n{body}\n"
    path.write_text(text, "utf-8")


def _body(document: str, title: str) -> str:
    """What stands there under this title."""
    found = re.search(rf"^## {title}\n\n(.*?)\n*(?=^## |\Z)", document, re.DOTALL | re.MULTILINE)
    return found[1] if found else ""


def _replay(replays: Sequence[Replay]) -> Iterator[str]:
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
    first, last = samples[0], samples[-1]
    grew = ", ".join(growth(samples)) or "nothing"
    yield f"{last.cycles} cycles of create and delete. What grew: {grew}."
    slope, settled = memory_slope(samples), memory_slope(samples[len(samples) // 2 :])
    yield f"Memory: {slope:+.0f} KiB for 1,000 cycles, in the second half {settled:+.0f}.\n"
    yield "| | at the first count | at the last |\n|---|---:|---:|"
    for name in ("cycles", "devices", "descriptors", "thin_ids", "uploads", "memory_kib"):
        yield f"| {name.replace('_', ' ')} | {getattr(first, name)} | {getattr(last, name)} |"


def _lvm(cases: Sequence[Case]) -> Iterator[str]:
    yield "A case is one LVM process of one operation that misbehaves in one way. It is good when,"
    yield "the trouble over and nothing restarted, the operation was done, refused or can be had"
    yield "(of a start: the next one is well), all bytes are right, nothing is left, the next"
    yield "create and delete succeed, and LVM was never run twice at once. While it hangs, reads"
    yield "are answered and health names it.\n"
    yield from _counted("operation", [(case.operation, case.is_good) for case in cases])
    yield ""
    yield from _counted("how it misbehaves", [(case.how, case.is_good) for case in cases])
    good = sum(case.is_good for case in cases)
    yield f"\nCases in all: {len(cases)}, not good: {len(cases) - good}."


def _counted(title: str, outcomes: Sequence[tuple[str, bool]]) -> Iterator[str]:
    yield f"| {title} | cases | not good |\n|---|---:|---:|"
    tried = Counter(name for name, _ in outcomes)
    bad = Counter(name for name, is_good in outcomes if not is_good)
    yield from (f"| {name} | {tried[name]} | {bad[name]} |" for name in sorted(tried))
