"""The process that resumes fronts whatever becomes of the daemon.

Run as a program of its own (standard library alone, locked in memory: the root file system itself
may lie on a suspended front). Told on stdin, line by line:

    arm SECONDS UUID     resume the device UUID in SECONDS, unless it is disarmed before
    disarm UUID

When stdin ends, because the daemon ended however it did, all that is armed is resumed at once.
Resuming a device that is not suspended does nothing, unless a table is loaded: then that becomes
live (Linux, drivers/md/dm-ioctl.c, do_resume). So fronts load one only when it may.

Each has a thread: a resume thaws the file system that is mounted on the front, which may write, and
wait for a disk that does not answer. The others, of other disks perhaps, must not wait with it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import struct
import sys
import threading
import time

# As in dm.py, written out: this file imports nothing that would have to be read later.
_HEADER = struct.Struct("=3I I I I i I I I Q 128s 129s 7x")
_DM_DEV_SUSPEND = 0xC138FD06
_MCL_CURRENT_AND_FUTURE = 3
#: All of it is locked in memory.
_STACK_BYTES = 128 * 1024


def resume(control: int, uuid: str) -> None:
    """One DM_DEV_SUSPEND ioctl without the suspend flag, which is a resume."""
    buffer = bytearray(_HEADER.size)
    _HEADER.pack_into(
        buffer, 0, 4, 0, 0, _HEADER.size, _HEADER.size, 0, 0, 0, 0, 0, 0, b"", uuid.encode()
    )
    try:
        fcntl.ioctl(control, _DM_DEV_SUSPEND, buffer)
    except OSError as err:
        sys.stderr.write(f"front watchdog: resume {uuid}: {err}\n")


def resume_all(control: int, uuids: list[str]) -> list[threading.Thread]:
    """Begin to resume them, each by itself."""
    threads = []
    for uuid in uuids:
        thread = threading.Thread(target=resume, args=(control, uuid), daemon=True)
        try:
            thread.start()
        except RuntimeError:  # there are no more to be had
            resume(control, uuid)
        else:
            threads.append(thread)
    return threads


def watch(stdin: int, control: int) -> None:
    """Serve until stdin ends."""
    armed: dict[str, float] = {}
    pending = b""
    while True:
        now = time.monotonic()
        overdue = [uuid for uuid, due in armed.items() if due <= now]
        for uuid in overdue:
            del armed[uuid]
        resume_all(control, overdue)
        wait_s = min(armed.values()) - now if armed else None
        if not select.select([stdin], [], [], wait_s)[0]:
            continue
        data = os.read(stdin, 65536)
        if not data:
            break
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            match line.decode().split():
                case ["arm", seconds, uuid]:
                    armed[uuid] = time.monotonic() + float(seconds)
                case ["disarm", uuid]:
                    armed.pop(uuid, None)
    for thread in resume_all(control, list(armed)):
        thread.join()


def main() -> None:
    """Lock the memory, then watch."""
    threading.stack_size(_STACK_BYTES)
    control = os.open("/dev/mapper/control", os.O_RDWR | os.O_CLOEXEC)
    if ctypes.CDLL(None, use_errno=True).mlockall(_MCL_CURRENT_AND_FUTURE) != 0:
        sys.stderr.write(f"front watchdog: mlockall: {os.strerror(ctypes.get_errno())}\n")
    watch(0, control)


if __name__ == "__main__":
    main()
