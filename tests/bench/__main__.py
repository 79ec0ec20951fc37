"""The command line: see `scripts/bench --help`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from tests.bench import idle, imports, lab, lists, native, scratch, sizes, transfers, writes
from tests.bench.guest import LabFailed
from tests.bench.report import Section, machine, write

_PROJECT = Path(__file__).resolve().parents[2]
_DOCUMENT = _PROJECT / "docs/benchmarks.md"
_PARTS: dict[str, Callable[..., Section]] = {
    "lab": lab.section,
    "native": native.section,
    "lists": lists.section,
    "idle": idle.section,
    "transfers": transfers.section,
    "imports": imports.section,
    "scratch": scratch.section,
    "sizes": sizes.section,
    "writes": writes.section,
}


def main() -> None:
    """Run the parts, print their tables, and write them down if asked to."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure blockd beside what it stands on. Takes about 35 minutes; run it on a"
        " machine that does nothing else. Parts: lab (daemon and bare LVM on a real"
        " device-mapper, in scripts/lab), native (the same at full speed with LVM's metadata"
        " alone: needs root and a loop device, else skipped), lists (GET /snapshots with up to"
        " 10,000 of them), idle (LVM processes per verb, and what an idle daemon does),"
        " transfers, imports (exports and imports beside what one would do by hand: need root"
        " and loop devices, else skipped), scratch (what exports that qemu-img lays out hold back:"
        " as transfers), sizes (exports of the same data in volumes of other"
        " sizes, in the lab), writes (a first write under N snapshots and a revert, both classes,"
        " in the lab).",
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(_PARTS)}; all")
    parser.add_argument("--quick", action="store_true", help="a smoke test of two minutes")
    parser.add_argument(
        "--write", action="store_true", help="put the tables into docs/benchmarks.md"
    )
    options = parser.parse_args()
    unknown = set(options.parts) - set(_PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    taken_on = machine()
    print(f"{taken_on}\n")
    sections = []
    for name in options.parts or _PARTS:
        try:
            section = _PARTS[name](quick=options.quick)
        except LabFailed as err:
            raise SystemExit(f"bench: {err}") from err
        print(f"## {section.name}\n\n{section.text}\n", flush=True)
        sections.append(section)
    if options.write:
        write(_DOCUMENT, sections, taken_on)


if __name__ == "__main__":
    main()
