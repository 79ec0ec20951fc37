"""LVM without blockd: the same commands, under blockd's configuration and under Debian's."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

#: As the package lvm2 installs it; the one thing the comparison takes from the host.
DEBIAN_CONF = Path("/etc/lvm/lvm.conf")
_LVM = "/sbin/lvm"


@dataclass(frozen=True, slots=True)
class BareLvm:
    """LVM under the configuration in `system_dir`."""

    system_dir: Path

    def run(self, verb: str, *args: str, stdin: bytes | None = None) -> float:
        """Run a command to its end, as blockd does: no shell, no terminal; seconds it took.

        Raises:
            RuntimeError: it ended with another status than 0; the message is what it said.
        """
        argv = [_LVM, verb, "-qq", "--yes", *args]
        env = {
            "LC_ALL": "C",
            "PATH": os.defpath,
            "LVM_SYSTEM_DIR": str(self.system_dir),
            "LVM_SUPPRESS_FD_WARNINGS": "1",
            "DM_DISABLE_UDEV": "1",
        }
        began = time.perf_counter()
        done = subprocess.run(argv, env=env, input=stdin, capture_output=True, check=False)
        took_s = time.perf_counter() - began
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(argv)}: {done.stderr.decode(errors='replace')}")
        return took_s

    def snapshot(self, vg: str, origin: str, name: str, tag: str) -> float:
        """A thin snapshot, with just the flags that blockd gives; seconds it took."""
        flags = ("--snapshot", "--permission", "r", "--setactivationskip", "y", "--activate", "n")
        return self.run("lvcreate", *flags, "--addtag", tag, "--name", name, f"{vg}/{origin}")

    def remove(self, vg: str, name: str) -> float:
        """Remove an LV; seconds it took."""
        return self.run("lvremove", f"{vg}/{name}")


def debian_lvm(directory: Path, changes: Sequence[str]) -> BareLvm:
    """LVM under a copy of Debian's configuration, with `changes` (sections of lvm.conf) behind it.

    Its archive and backup of metadata go into `directory`, too, as they go to /etc/lvm there.
    """
    directory.mkdir(parents=True)
    text = DEBIAN_CONF.read_text("utf-8") + "\n" + "\n".join(changes) + "\n"
    (directory / "lvm.conf").write_text(text, "utf-8")
    return BareLvm(directory)
