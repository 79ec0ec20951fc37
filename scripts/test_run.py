"""Runs the tests in parts, two guests at a time, and adds up what passed and what failed.

Started by `scripts/test`, which sets up first. There are three kinds of test: those without a
marker run here; those marked `kernel` run inside guests of `scripts/lab`, one file to a guest;
those marked `lab` run here and start guests themselves. Each CPU takes the next file as soon as
it is free.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
BUILD: Final = ROOT / "build"
DURATIONS: Final = BUILD / "test-durations.json"
PYTEST: Final = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
#: Inside a guest, whose Python is the environment's; the folder is the same.
GUEST_PYTEST: Final = [".venv/bin/python", *PYTEST[1:]]

#: The drivers' tests take the first one, those of the daemon the second.
GUEST_DISKS: Final = ["--disk", "4G"] * 3

NATIVE, KERNEL, LAB = "native", "kernel", "lab"
#: Without --full each goes on with "and not full".
MARKS: Final = {NATIVE: "not kernel and not lab", KERNEL: "kernel", LAB: "lab"}

#: Files whose tests take a minute or more each, and so are dealt out: one by one those that start
#: guests themselves, the others a few to a guest, which takes 15 s to be ready for them.
LONG: Final = "tests/faults/"
LONG_S: Final = 60.0
SHARED: Final = 4

#: A unit that takes longer hangs: it is ended, and counts as failed.
UNIT_TIMEOUT_S: Final = 20 * 60
#: How often a line says what is running.
NEWS_S: Final = 60
SHOWN_LINES: Final = 200
#: What a test takes where no earlier run has left its figure.
GUESS_S: Final = {NATIVE: 0.1, KERNEL: 3.0, LAB: 20.0}


@dataclass
class Unit:
    """What one pytest process runs: native tests, or a file or test of another kind.

    Attributes:
        targets: files and node ids, as pytest takes them; none: all there are.
        tests: how many were collected; 0 if it was not asked.
        counts: of `passed`, `failed` and `skipped`, when it is done.
    """

    kind: str
    name: str
    targets: list[str]
    tests: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    took_s: float = 0.0
    began: float | None = None

    @property
    def label(self) -> str:
        if self.kind == NATIVE:
            return f"{self.kind} {self.name}".strip()
        file, _, test = self.name.partition("::")
        parameters = re.findall(r"\[.*\]$", test)
        return " ".join([self.kind, file, *(parameters or filter(None, [test]))])

    @property
    def stem(self) -> Path:
        """Where its log and report go, less the suffix."""
        return BUILD / "-".join(["test", self.kind, *re.findall(r"\w+", self.name)])

    @property
    def log(self) -> Path:
        return self.stem.with_suffix(".log")

    @property
    def report(self) -> Path:
        return self.stem.with_suffix(".xml")

    def expected_s(self, known: dict[str, float]) -> float:
        guess_s = LONG_S if self.name.startswith(LONG) else GUESS_S[self.kind]
        return known.get(self.label, guess_s * max(self.tests, 1))

    def argv(self, cpu: int, options: list[str]) -> list[str]:
        """The command; on `cpu`, so that a guest does not move: moving makes it far slower."""
        chosen = ["-v", "-m", MARKS[self.kind], "--junitxml", str(self.report.relative_to(ROOT))]
        rest = [*chosen, *options, *self.targets]
        if self.kind == KERNEL:
            return ["scripts/lab", "--cpu", str(cpu), *GUEST_DISKS, "--", *GUEST_PYTEST, *rest]
        return [*PYTEST, *rest]


class Run:
    """All units of one call, and the processes under way."""

    def __init__(self, units: list[Unit], options: list[str]) -> None:
        self.units, self.options = units, options
        self._waiting = list(units)
        self._lock = threading.Lock()
        self._running: dict[subprocess.Popen[bytes], Unit] = {}
        self._stopped = False

    def work(self, cpu: int) -> None:
        """Take unit after unit, on this CPU."""
        os.sched_setaffinity(0, {cpu})  # of this thread, and of what it starts
        while True:
            with self._lock:
                if self._stopped or not self._waiting:
                    return
                unit = self._waiting.pop(0)
            self._carry_out(unit, cpu)

    def stop(self) -> None:
        """End what runs; `scripts/lab` takes its guest with it."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                end(process, signal.SIGTERM)

    def news(self) -> None:
        """Say what is running, and which test it is at."""
        with self._lock:
            running = list(self._running.values())
        for unit in running:
            if unit.began is not None:
                say(f"    ... {unit.label}: {time.monotonic() - unit.began:.0f} s, {at_test(unit)}")

    def _carry_out(self, unit: Unit, cpu: int) -> None:
        unit.report.unlink(missing_ok=True)
        unit.began = time.monotonic()
        with unit.log.open("wb") as log:
            process = subprocess.Popen(
                unit.argv(cpu, self.options),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        with self._lock:
            self._running[process] = unit
            if self._stopped:
                end(process, signal.SIGTERM)
        trouble = ""
        try:
            process.wait(UNIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            trouble = f": ended after {UNIT_TIMEOUT_S} s"
            end(process, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                end(process, signal.SIGKILL)
                process.wait()
        unit.took_s = time.monotonic() - unit.began
        with self._lock:
            del self._running[process]
            unit.counts = counts_of(unit.report)
            unit.counts["failed"] += not_told(unit.counts, process.returncode)
            if unit.kind == KERNEL and not unit.counts["passed"] + unit.counts["failed"]:
                # A guest has all that a test may ask for: skipping everything is no success.
                unit.counts["failed"], trouble = 1, ": all of it was skipped"
            if not self._stopped:
                self._tell(unit, trouble or ending(process.returncode))

    def _tell(self, unit: Unit, trouble: str) -> None:
        done = sum(1 for other in self.units if other.took_s)
        ok = not unit.counts["failed"]
        say(
            f"  {'ok  ' if ok else 'FAIL'} {done:2}/{len(self.units)}  {unit.label}: "
            f"{summary(unit.counts)} in {unit.took_s:.0f} s{'' if ok else trouble}"
        )
        if not ok:
            say(f"---- from {unit.log.relative_to(ROOT)}", *telling_lines(unit.log), "----")


def end(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal a unit with all that it started; it has a session of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


def at_test(unit: Unit) -> str:
    """How far a unit is, from its log."""
    lines = unit.log.read_text("utf-8", "replace").splitlines()
    tests = [line for line in lines if "::" in line]
    return tests[-1].rpartition("::")[2].strip() if tests else "starting"


def telling_lines(log: Path) -> list[str]:
    """What a log says of failures; its end, where it says nothing of the kind."""
    lines = log.read_text("utf-8", "replace").splitlines()
    starts = [n for n, line in enumerate(lines) if re.match(r"=+ (FAILURES|ERRORS) =+$", line)]
    return lines[starts[0] :][:SHOWN_LINES] if starts else lines[-SHOWN_LINES:]


def counts_of(report: Path) -> Counter[str]:
    """What a JUnit report says; nothing where there is none. An error is a failure, too."""
    counts: Counter[str] = Counter()
    try:
        suites = list(ET.parse(report).iter("testsuite"))
    except (OSError, ET.ParseError):
        return counts
    for suite in suites:
        tests, errors, failures, skipped = (
            int(suite.get(name, "0")) for name in ("tests", "errors", "failures", "skipped")
        )
        counts["skipped"] += skipped
        counts["failed"] += errors + failures
        # A test that passes and fails in its teardown is two lines of the report.
        counts["passed"] += max(0, tests - errors - failures - skipped)
    return counts


def not_told(counts: Counter[str], status: int) -> int:
    """1 for a unit that ended badly with no failure in its report: a guest that died, say."""
    return int(status not in (0, 5) and not counts["failed"])


def ending(status: int) -> str:
    return f", status {status}" if status not in (0, 1) else ""


def summary(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[name]} {name}" for name in ("passed", "failed", "skipped"))


def collect(kind: str, options: list[str], selected: list[str]) -> dict[str, list[str]]:
    """The node ids of this kind's tests, by file.

    Raises:
        SystemExit: pytest could not collect them.
    """
    argv = [*PYTEST, "--collect-only", "-q", "-m", MARKS[kind], *options, *selected]
    found = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode not in (0, 5):
        say(found.stdout, found.stderr)
        raise SystemExit(f"test: pytest could not collect the {kind} tests")
    nodes: dict[str, list[str]] = {}
    for node, file in re.findall(r"^((\S+\.py)::.+)$", found.stdout, re.MULTILINE):
        nodes.setdefault(file, []).append(node)
    return nodes


def units_of(kind: str, options: list[str], selected: list[str]) -> list[Unit]:
    """A unit for each file of this kind, or several where tests take long."""
    units = []
    for file, nodes in collect(kind, options, selected).items():
        if file.startswith(LONG) and kind == KERNEL:
            parts = [nodes[n : n + SHARED] for n in range(0, len(nodes), SHARED)]
            for number, part in enumerate(parts, 1):
                units.append(Unit(kind, f"{file}::{number} of {len(parts)}", part, len(part)))
        elif file.startswith(LONG):
            units += [Unit(kind, node, [node], 1) for node in nodes]
        else:
            within = [target for target in selected if target.partition("::")[0] == file]
            units.append(Unit(kind, file, within or [file], len(nodes)))
    return units


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/test",
        usage="scripts/test [--fast | --full] [PYTEST ARGUMENT]...",
        description="Run the tests, those on a real kernel in guests of scripts/lab.",
        epilog="All else goes to pytest: scripts/test -k snapshot; scripts/test tests/contract. "
        "Logs and reports are in build/. The last line says how many passed and failed in all.",
        allow_abbrev=False,
    )
    parser.add_argument("--fast", action="store_true", help="only what needs no kernel")
    parser.add_argument("--full", action="store_true", help="also what takes minutes each")
    options, rest = parser.parse_known_args()
    options.selected = [text for text in rest if (ROOT / text.partition("::")[0]).exists()]
    options.pytest = [text for text in rest if text not in options.selected]
    return options


def close(units: list[Unit], all_wanted: bool) -> int:
    """The closing lines, and the exit status."""
    total: Counter[str] = Counter()
    ran: Counter[str] = Counter()
    say("")
    for kind in MARKS:
        of_kind = [unit for unit in units if unit.kind == kind]
        counts = sum((unit.counts for unit in of_kind), Counter())
        total += counts
        ran[kind] = counts["passed"] + counts["failed"]
        if of_kind:
            say(f"{kind}: {summary(counts)}, {sum(unit.took_s for unit in of_kind):.0f} s")
    for unit in units:
        if unit.counts["failed"]:
            say(f"failed: {unit.label}: see {unit.log.relative_to(ROOT)}")
    missing = [kind for kind in MARKS if not ran[kind]] if all_wanted else []
    if missing:
        say(f"no test of these parts ran, which is a failure: {', '.join(missing)}")
    elif not ran.total():
        say("no test ran, which is a failure")
    say(summary(total))
    return int(bool(total["failed"] or missing or not ran.total()))


def fast(arguments: list[str]) -> int:
    """The native tests: one pytest with its own output, or one on each CPU when all are wanted."""
    cpus = two_cpus()
    if not arguments and len(cpus) == 2:
        files = sorted(ROOT.glob("tests/**/test_*.py"), key=lambda file: file.stat().st_size)
        names = [str(file.relative_to(ROOT)) for file in files]
        halves = [Unit(NATIVE, f"{n + 1} of 2", names[n::2]) for n in range(2)]
        carry_out(halves, [], cpus)
        return close(halves, all_wanted=False)
    unit = Unit(NATIVE, "", [])
    unit.report.unlink(missing_ok=True)
    argv = [*PYTEST, "-q", "-m", MARKS[NATIVE], "--junitxml", str(unit.report), *arguments]
    began = time.monotonic()
    status = subprocess.run(argv, cwd=ROOT, check=False).returncode
    unit.took_s = time.monotonic() - began
    unit.counts = counts_of(unit.report)
    unit.counts["failed"] += not_told(unit.counts, status)
    return close([unit], all_wanted=False)


def two_cpus() -> list[int]:
    """Those that we may use, two at most."""
    return sorted(os.sched_getaffinity(0))[:2]


def carry_out(units: list[Unit], options: list[str], cpus: list[int]) -> None:
    """Run all units, one on each CPU at a time, and say from time to time how it goes."""
    say(f"{len(units)} parts on {len(cpus)} CPU(s), logs in build/")
    began = time.monotonic()
    run = Run(units, options)
    with ThreadPoolExecutor(len(cpus)) as pool:
        workers = [pool.submit(run.work, cpu) for cpu in cpus]
        try:
            while wait(workers, NEWS_S).not_done:
                run.news()
        except BaseException:
            run.stop()
            raise
        for worker in workers:
            worker.result()
    say("", f"all parts took {time.monotonic() - began:.0f} s")


def everything(asked: argparse.Namespace) -> int:
    """All three kinds."""
    known: dict[str, float] = json.loads(DURATIONS.read_text()) if DURATIONS.exists() else {}
    guests = [
        unit for kind in (KERNEL, LAB) for unit in units_of(kind, asked.pytest, asked.selected)
    ]
    # The longest first, so that none is left over at the end; the native ones before all, as they
    # are the first to tell that something is wrong.
    guests.sort(key=lambda unit: unit.expected_s(known), reverse=True)
    units = [Unit(NATIVE, "", asked.selected), *guests]
    carry_out(units, asked.pytest, two_cpus())
    took = {unit.label: round(unit.took_s, 1) for unit in units if not unit.counts["failed"]}
    DURATIONS.write_text(json.dumps(known | took, indent=1))
    return close(units, all_wanted=not (asked.pytest or asked.selected))


def main() -> int:
    asked = parse()
    BUILD.mkdir(exist_ok=True)
    if not asked.full:
        MARKS.update({kind: f"({mark}) and not full" for kind, mark in MARKS.items()})
    try:
        return fast([*asked.pytest, *asked.selected]) if asked.fast else everything(asked)
    except KeyboardInterrupt:
        say("test: interrupted")
        return 130


if __name__ == "__main__":
    # Ignored in a background job, which tests of Ctrl-C would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
