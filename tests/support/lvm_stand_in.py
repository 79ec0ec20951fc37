"""A stand-in for `lvm`, before the real one in the daemon's search path, that can misbehave.

Only in a guest of the lab, whose root is thrown away. It is a shell script without a fork of its
own as long as it behaves, since a fork costs 0.1 s there. So nobody is left who could note the end
of a call: each notes its beginning, and then looks which of those that began before still runs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.support.daemon import VG

_PLACE = Path("/usr/local/sbin/lvm")

#: How any command can misbehave: what it is like for blockd, and what it did.
OF_ALL = (
    "exit 5 before",
    "exit 5 after",
    "SIGSEGV before",
    "exit 139 after",
    "hang before",
    "hang after",
    "lock held",
    "noise on stderr",
)
#: And how those that report can.
OF_REPORTS = ("truncated JSON", "warnings on stdout", "hint within JSON", "no output")
REPORTS = ("lvs", "vgs", "pvs")

#: They go on until `StandIn.release`.
LASTING = ("hang before", "hang after", "lock held")

_SCRIPT = r"""#!/bin/sh
real={real}
cd {folder} || exit 3
count=0
[ -e count ] && read -r count < count
count=$((count + 1))
echo "$count" > count
case $1 in
/dev/stdin) verb=lvcreate ;; # a script of them
*) verb=$1 ;;
esac
# Noted before others are looked for, so of two that begin at once each sees the other.
echo "$$ $count $verb" >> begun
echo "$verb" >> calls
while read -r pid number other; do
    [ "$pid" != $$ ] && [ -e "/proc/$pid/stat" ] || continue
    {{ read -r _ name state _ < "/proc/$pid/stat"; }} 2>/dev/null || continue
    case $name$state in
    '(lvm)'[!ZX]) echo "call $count, $verb, began while call $number, $other, ran" >> beside ;;
    esac
done < begun
how=
[ -e "plan/$count" ] && read -r how < "plan/$count"
noise() {{
    printf '  WARNING: something \033[31mred\033[0m \377\376 and\a noisy\n' >&2
    printf '  WARNING: and more of it.\n' >&2
}}
released() {{
    : > "hit"
    read -r _ < release
}}
cut() {{
    size=$(wc -c < out)
    head -c $((size / 2)) out
}}
case $how in
'') exec "$real" "$@" ;;
'exit 5 before')
    echo '  Failed on purpose.' >&2
    exit 5 ;;
'exit 5 after')
    "$real" "$@"
    echo '  Failed on purpose, afterwards.' >&2
    exit 5 ;;
'SIGSEGV before') kill -s SEGV $$ ;;
'exit 139 after')
    "$real" "$@"
    exit 139 ;;
'hang before')
    released
    exec "$real" "$@" ;;
'hang after')
    "$real" "$@"
    status=$?
    released
    exit $status ;;
'lock held')
    exec 9> /run/lock/lvm/V_{vg}
    flock 9
    released &
    exec 9>&-
    exec "$real" "$@" ;;
'noise on stderr')
    noise
    exec "$real" "$@" ;;
'truncated JSON')
    "$real" "$@" > out
    cut
    exit 0 ;;
'warnings on stdout')
    echo '  WARNING: Device /dev/sdx has size of {{ 4 }} sectors.'
    echo '  Archiving volume group "faults" metadata (seqno 4).'
    "$real" "$@"
    status=$?
    echo '  Volume group metadata archived.'
    exit $status ;;
'hint within JSON')
    "$real" "$@" > out
    cut
    echo '  WARNING: VG name faults is used twice.'
    tail -c $((size - size / 2)) out
    exit 0 ;;
'no output')
    "$real" "$@" > out
    exit 0 ;;
*)
    echo "unknown misbehaviour $how" >&2
    exit 3 ;;
esac
"""


class StandIn:
    """Behaves until it is told otherwise."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "plan").mkdir()
        os.mkfifo(folder / "release")
        # Held open, so that neither side waits for the other.
        self._release = os.open(folder / "release", os.O_RDWR)

    def close(self) -> None:
        """Let go of the pipe."""
        os.close(self._release)

    def plan(self, plan: Mapping[int, str]) -> None:
        """From here on calls are counted anew, from 1; those that `plan` names misbehave so."""
        for path in (*self._folder.glob("plan/*"), self._folder / "hit", self._folder / "calls"):
            path.unlink(missing_ok=True)
        begun = self._lines("begun")
        running = [line for line in begun if Path("/proc", line.split()[0]).exists()]
        (self._folder / "begun").write_text("".join(f"{line}\n" for line in running))
        for number, how in plan.items():
            (self._folder / "plan" / str(number)).write_text(how + "\n")
        (self._folder / "count").write_text("0\n")

    def calls(self) -> list[str]:
        """The verbs that LVM was called with since `plan`."""
        return self._lines("calls")

    def expect_one_at_a_time(self) -> None:
        """No call of LVM has ever begun while another one ran."""
        beside = self._lines("beside")
        assert not beside, f"LVM ran twice at once in {VG}: {'; '.join(beside)}"

    def _lines(self, name: str) -> list[str]:
        try:
            return (self._folder / name).read_text().splitlines()
        except FileNotFoundError:
            return []

    def await_hit(self) -> None:
        """Wait until a call has begun to hang."""
        deadline = time.monotonic() + 60
        while not (self._folder / "hit").exists():
            assert time.monotonic() < deadline, f"LVM was called for {self.calls()} only"
            time.sleep(0.02)

    def release(self) -> None:
        """Let it go on."""
        os.write(self._release, b"\n")


def script(folder: Path, real: str = "/sbin/lvm") -> str:
    """What stands in for `real`, whose name must be `lvm` too; `folder` is a `StandIn`'s."""
    return _SCRIPT.format(folder=folder, vg=VG, real=real)


@contextmanager
def lvm_stand_in(folder: Path) -> Iterator[StandIn]:
    """Daemons that start within the block run the stand-in."""
    assert not _PLACE.exists(), f"{_PLACE} is there: this is no guest of the lab"
    stand_in = StandIn(folder)
    _PLACE.write_text(script(folder))
    _PLACE.chmod(0o755)
    try:
        yield stand_in
    finally:
        _PLACE.unlink()
        stand_in.close()
