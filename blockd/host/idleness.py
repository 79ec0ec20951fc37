"""Whether a process does anything at all."""

from __future__ import annotations

from pathlib import Path


def context_switches(pid: int) -> int | None:
    """How often a process and its children, of all generations, have run; None: cannot be told.

    Of the first thread of each. It does not grow while they wait for a disk that does not answer,
    or are stopped, and does for whatever else they do, however slowly.

    Source: proc_pid_status(5); proc_tid_children(5), which some kernels lack; proc(5), hidepid,
    under which those of other users cannot be seen.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return None
    lines = [line for line in status.splitlines() if "ctxt_switches" in line]
    total = sum(int(line.split()[1]) for line in lines)
    for child in children:
        below = context_switches(int(child))
        if below is None:
            return None
        total += below
    return total
