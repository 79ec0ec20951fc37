"""What the host has to offer a guest: programs, disks, memory, a CPU. Each lack is one line."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).resolve().parents[2]
VENV: Final = PROJECT / ".venv"
SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAX_DISKS: Final = 15  # ubda to ubdo; the sixteenth is the catalog's
DISK_BYTES: Final = 4 << 30
CATALOG_BYTES: Final = 256 << 20
LOCK_S: Final = 5.0
MKFS_S: Final = 60.0
UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class CannotStart(Exception):
    """One line that says what is missing or wrong."""


def size_bytes(text: str, least_bytes: int) -> int:
    """`4G`, `512M`, `1000000512` (bytes): powers of 1024, whole sectors of 512 bytes."""
    match = re.fullmatch(r"(\d+)([KMGT]?)", text.upper())
    size = int(match[1]) * UNITS[match[2]] if match else 0
    if size < least_bytes or size % 512 or size >= 1 << 60:
        raise CannotStart(
            f"bad size {text!r}: write 512M or 4G, at least {least_bytes >> 20}M, in whole sectors"
        )
    return size


def program(name: str, package: str) -> str:
    """Path of a program of the host, or the package to install."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}")
    if path is None:
        raise CannotStart(f"{name} is missing: install the Debian package {package}")
    return path


def venv_program(name: str) -> str:
    """Path of a program of the project's virtual environment."""
    path = VENV / "bin" / name
    if not os.access(path, os.X_OK):
        raise CannotStart(f"{path} is missing or cannot be run: run scripts/setup")
    return str(path)


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A folder in TMPDIR for what passes between lab and the guest; removed at the end."""
    temporary = os.environ.get("TMPDIR") or "/tmp"
    try:
        folder = tempfile.mkdtemp(prefix="lab-", dir=temporary)
    except OSError as err:
        raise CannotStart(f"cannot write in TMPDIR {temporary}: {err.strerror}") from None
    try:
        yield Path(folder).resolve()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- disks --------------------------------------------------------------------------------------


def open_disk_dir(name: str) -> Path:
    """The folder given with --disk-dir, kept from other labs until our last process has ended."""
    folder = Path(name).resolve()
    try:
        file = os.open(folder / ".lab.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except FileNotFoundError:
        raise CannotStart(f"--disk-dir {name}: no such folder") from None
    except OSError as err:
        raise CannotStart(f"--disk-dir {name}: {err.strerror}") from None
    deadline = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise CannotStart(f"another lab uses the disks in {name}") from None
            time.sleep(0.05)  # the lab before may still be ending; flock has no deadline of its own
        else:
            return folder


def make_disks(folder: Path, sizes_bytes: list[int]) -> list[Path]:
    """Sparse files ubda.img, ubdb.img and so on in folder, together with those found there.

    A size given for a disk that exists makes it larger, never smaller.
    """
    paths = [folder / f"ubd{chr(ord('a') + unit)}.img" for unit in range(MAX_DISKS)]
    found = next((unit for unit, path in enumerate(paths) if not path.exists()), MAX_DISKS)
    if not sizes_bytes and not found:
        sizes_bytes = [DISK_BYTES]
    if len(sizes_bytes) > MAX_DISKS:
        raise CannotStart(f"{len(sizes_bytes)} disks: the guest takes {MAX_DISKS} at most")
    for path, size in zip(paths, sizes_bytes, strict=False):
        try:
            with path.open("ab") as disk:
                if disk.tell() > size:
                    raise CannotStart(f"{path} has {disk.tell()} bytes already, more than {size}")
                disk.truncate(size)
        except OSError as err:
            raise CannotStart(f"cannot make the disk {path}: {err.strerror}") from None
    return paths[: max(found, len(sizes_bytes))]


def make_catalog(folder: Path) -> Path:
    """An ext4 for the catalog, on a disk of its own so that a power cut hits it too; made once."""
    image = folder / "catalog.img"
    if not image.exists():
        mkfs = program("mkfs.ext4", "e2fsprogs")
        unfinished = folder / "catalog.img.new"
        with unfinished.open("wb") as disk:
            disk.truncate(CATALOG_BYTES)
        made = subprocess.run(
            [mkfs, "-q", "-F", unfinished], capture_output=True, timeout=MKFS_S, check=False
        )
        if made.returncode:
            raise CannotStart(f"mkfs.ext4: {made.stderr.decode(errors='replace').strip()}")
        unfinished.rename(image)
    return image


# --- memory and CPU -----------------------------------------------------------------------------


def memory_folder(need_bytes: int, temporary: Path) -> Path:
    """A folder for the file that is the guest's memory: writable, with room, not `noexec`."""
    for folder in (Path("/dev/shm"), temporary):
        with contextlib.suppress(OSError):
            room = os.statvfs(folder)
            if (
                os.access(folder, os.W_OK | os.X_OK)
                and not room.f_flag & os.ST_NOEXEC
                and room.f_bavail * room.f_frsize >= need_bytes
            ):
                return folder
    raise CannotStart(
        f"neither /dev/shm nor {temporary} has room for {need_bytes >> 20} MiB of memory:"
        " give the guest less with --memory"
    )


def busy_ticks() -> dict[int, int]:
    """How long each CPU has been busy since boot, in ticks. Source: proc(5), /proc/stat."""
    busy = {}
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if re.fullmatch(r"cpu\d+", name):
            user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(int, fields)
            busy[int(name[3:])] = user + nice + system + irq + softirq + steal
    return busy


def choose_cpu(wanted: int | None) -> int:
    """One CPU for the guest: a guest that moves between CPUs is three to four times slower."""
    allowed = sorted(os.sched_getaffinity(0))
    if wanted is not None:
        if wanted not in allowed:
            raise CannotStart(f"CPU {wanted} is not among those allowed: {allowed}")
        return wanted
    before = busy_ticks()
    time.sleep(0.03)  # three ticks
    after = busy_ticks()
    turn = os.getpid() % len(allowed)  # of equally busy ones, not always the same
    return min(
        allowed[turn:] + allowed[:turn], key=lambda cpu: after.get(cpu, 0) - before.get(cpu, 0)
    )
