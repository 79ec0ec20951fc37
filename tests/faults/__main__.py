"""`scripts/faults`: the long trials of what a storage daemon is worth on its worst day."""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

from tests.faults import report
from tests.faults.campaign import Campaign, CampaignFailed, Tally
from tests.faults.cycles import Cycles, growth, memory_slope
from tests.faults.guest import ROOT
from tests.faults.lvm_cases import cases
from tests.faults.replay import KINDS, Replay

WORK = ROOT / "build/faults"
DOCUMENT = ROOT / "docs/faults.md"

EPILOG = """\
Everything is kept in build/faults: stop it at any time, and go on with --resume.
Guests run on the CPUs that this process may use (taskset). Exit status: 0 if all is well, else 1.
"""


def parse() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(
        prog="scripts/faults",
        description="Without --replay and --cycles: a campaign of random operations and strikes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--seed", default="1", help="of the campaign: any text (1)")
    add("--rounds", type=int, default=200, help="of the campaign (200)")
    add("--replay", action="store_true", help="crash points between the writes of each verb")
    add("--points", type=int, default=1200, help="of the replay, in all (1200)")
    add("--during", default="", metavar="WORDS", help="of what is told so alone, for the replay")
    add("--kind", choices=KINDS, action="append", help="of class, for the replay (both)")
    add("--cycles", type=int, metavar="N", help="create and delete N times")
    add("--resume", action="store_true", help="go on where the last run ended")
    add("--write", action="store_true", help=f"write {DOCUMENT.relative_to(ROOT)}, from all runs")
    return parser.parse_args()


def replay(kinds: list[str], points: int, during: str) -> bool:
    """Whether all points are good."""
    cpus = sorted(os.sched_getaffinity(0))
    replays = [
        Replay(WORK / kind, kind, cpus[number % len(cpus)]) for number, kind in enumerate(kinds)
    ]

    def one(part: Replay) -> bool:
        part.record()
        say(f"{part.kind}: {len(part.points(during))} crash points recorded")
        results = part.replay(points // len(kinds), lambda: tell(part), during=during)
        for result in results:
            if result.failure:
                say(f"{part.kind} {result.entries}, in {result.op}: {result.failure}")
        return not any(result.failure for result in results)

    def tell(part: Replay) -> None:
        results = part.results()
        bad = sum(bool(result.failure) for result in results)
        say(f"{part.kind}: {len(results)} points tried, {bad} not good")

    with ThreadPoolExecutor(min(len(cpus), len(kinds))) as pool:
        try:
            return all(list(pool.map(one, replays)))
        except BaseException:
            for part in replays:
                part.stop()
            raise


def campaign(seed: str, rounds: int) -> bool:
    """Whether it came to its end."""

    def tell(tally: Tally) -> None:
        strikes = ", ".join(f"{kind} {count}" for kind, count in sorted(tally.strikes.items()))
        say(f"{tally.rounds} rounds, {tally.operations} operations; {strikes}")

    trial = Campaign(WORK / "campaign", seed)
    try:
        tell(trial.run(rounds, tell))
    except CampaignFailed as failure:
        say(str(failure))
        return False
    finally:
        trial.stop()
    return True


def cycles(count: int) -> bool:
    """Whether nothing grew."""
    trial = Cycles(WORK / "cycles")
    try:
        samples = trial.run(count)
    finally:
        trial.stop()
    for sample in samples:
        say(str(sample))
    grew = growth(samples)
    say(f"grew: {', '.join(grew) or 'nothing'}; memory {memory_slope(samples):+.0f} KiB for 1,000")
    return not grew


def say(text: str) -> None:
    """On standard output, at once."""
    print(text, flush=True)


@contextmanager
def alone(folders: Sequence[str]) -> Iterator[None]:
    """No other run is at these folders within the block: two guests on one disk lose its data."""
    WORK.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        for name in folders:
            file = stack.enter_context((WORK / f"{name}.lock").open("w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SystemExit(
                    f"faults: another run is at {WORK / name}: wait for it, or stop it"
                ) from None
        yield


def main() -> int:
    """The chosen part."""
    options = parse()
    kinds = options.kind or list(KINDS)
    only_writes = options.write and sys.argv[1:] == ["--write"]
    folders = kinds if options.replay else ["cycles" if options.cycles else "campaign"]
    is_well = True
    if not only_writes:
        with alone(folders):
            if not options.resume:
                for name in folders:
                    shutil.rmtree(WORK / name, ignore_errors=True)
            if options.replay:
                is_well = replay(kinds, options.points, options.during)
            elif options.cycles:
                is_well = cycles(options.cycles)
            else:
                is_well = campaign(options.seed, options.rounds)
    if options.write:
        report.write(
            DOCUMENT,
            [Replay(WORK / kind, kind) for kind in KINDS],
            Campaign(WORK / "campaign", options.seed).tally(),
            Cycles(WORK / "cycles").samples(),
            cases(),
        )
    return int(not is_well)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
