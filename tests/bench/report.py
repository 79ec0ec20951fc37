"""Samples to figures, figures to tables, tables into docs/benchmarks.md."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the report: `text` is Markdown, tables and how they came about."""

    name: str
    text: str


def median_ms(samples_s: Sequence[float]) -> float:
    """The median of seconds, in milliseconds."""
    return statistics.median(samples_s) * 1000


def percentile_ms(samples_s: Sequence[float], percent: int) -> float:
    """The smallest sample that `percent` of all do not exceed, in milliseconds (nearest rank)."""
    ordered = sorted(samples_s)
    return ordered[max(-(-len(ordered) * percent // 100) - 1, 0)] * 1000


def spread(samples_s: Sequence[float]) -> str:
    """`median (first to third quartile)` in milliseconds."""
    low, high = percentile_ms(samples_s, 25), percentile_ms(samples_s, 75)
    return f"{_ms(median_ms(samples_s))} ({_ms(low)} to {_ms(high)})"


def ratio(samples_s: Sequence[float], of_s: Sequence[float]) -> float:
    """How many times the median of `of_s` the median of `samples_s` is."""
    return median_ms(samples_s) / median_ms(of_s)


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table whose columns are aligned in the source as well."""
    cells = [list(head), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in cells
    ]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in lines)


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def machine() -> str:
    """What the figures were taken on, in one line."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    models = re.findall(r"(?m)^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text())
    model = models[0] if models else platform.machine()
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{os.cpu_count()} cores ({model}), {memory_gib:.0f} GiB, Linux {platform.release()}, "
        f"LVM {lvm_version()}, Python {platform.python_version()}, "
        f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC, load before: {load}"
    )


def lvm_version() -> str:
    """Of the installed LVM, e.g. `2.03.16(2)`; `none`."""
    try:
        output = subprocess.run(
            ["/sbin/lvm", "pvs", "--driverloaded", "n", "--version"],
            capture_output=True,
            check=False,
        )
    except OSError:
        return "none"
    match = re.search(rb"LVM version:\s*(\S+)", output.stdout)
    return match[1].decode() if match else "none"


def write(path: Path, sections: Sequence[Section], taken_on: str) -> None:
    """Replace what stands between the markers of each section, and date it.

    Raises:
        SystemExit: the document has no markers for a section.
    """
    text = path.read_text("utf-8")
    for section in sections:
        begin, end = f"<!-- bench:{section.name} -->", f"<!-- /bench:{section.name} -->"
        if begin not in text or end not in text:
            raise SystemExit(f"{path} has no markers {begin} … {end}")
        head, rest = text.split(begin, 1)
        tail = rest.split(end, 1)[1]
        text = f"{head}{begin}\n\n{section.text}\n\nTaken on: {taken_on}.\n\n{end}{tail}"
    path.write_text(text, "utf-8")
