"""Runs a program that is fed hostile input where there is nothing to take or to break.

A program of the standard library alone: `python -I -S jail.py SPEC PROGRAM ARGUMENT...`. It takes
away, one by one: memory and time beyond a limit, the network, other processes, every file but the
program's libraries and one disk, capabilities, the user. A step that this kernel refuses is
skipped, and named in the report; the daemon logs which.

Source: unshare(2), pivot_root(2), capabilities(7), prctl(2), namespaces(7).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import signal
import stat
import sys
from collections.abc import Callable

_libc = ctypes.CDLL(None, use_errno=True)

_NEW_MOUNTS, _NEW_UTS, _NEW_IPC, _NEW_PID, _NEW_NET = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x20000000,
    0x40000000,
)
_RDONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_DETACH = 2
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_PDEATHSIG, _CAPBSET_DROP, _NO_NEW_PRIVS = 1, 24, 38
_CAPABILITY_VERSION = 0x20080522
_NOBODY = 65534

#: What a dynamically linked program needs to be loaded.
_LIBRARIES = ("/usr", "/bin", "/lib", "/lib64")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    _check(
        _libc.mount(
            source.encode(),
            target.encode(),
            kind.encode() if kind else None,
            ctypes.c_ulong(flags),
            data.encode() if data else None,
        ),
        f"mount {target}",
    )


class Jail:
    """The steps, in order; `skipped` names those that could not be taken."""

    def __init__(self, spec: dict[str, object]) -> None:
        """`spec`: memory_bytes, cpu_s, disk (path or null, only read), report (descriptor)."""
        self._spec = spec
        self.skipped: list[str] = []
        self._disk = spec["disk"]
        self._user = _NOBODY

    def enter(self) -> None:
        """All steps up to the one that forks."""
        self._limits()
        self._step("namespaces", self._unshare)
        self._step("files", self._leave_files)

    def drop(self) -> None:
        """What is left to be taken away, in the process that becomes the program."""
        self._step("capabilities", self._empty_bounding_set)
        self._step("user", self._become_nobody)
        self._step("capabilities", self._drop_capabilities)
        self._step("new privileges", lambda: _check(_libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), ""))
        # After the change of user, which clears it.
        _libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    def report(self) -> None:
        """Write what was skipped where the daemon reads it."""
        os.write(int(str(self._spec["report"])), json.dumps(sorted(set(self.skipped))).encode())

    def _step(self, name: str, take: Callable[[], None]) -> None:
        try:
            take()
        except OSError as err:
            self.skipped.append(f"{name}: {err.strerror or err}")

    def _limits(self) -> None:
        memory_bytes, cpu_s = int(str(self._spec["memory_bytes"])), int(str(self._spec["cpu_s"]))
        for what, most in (
            (resource.RLIMIT_AS, memory_bytes),
            (resource.RLIMIT_CPU, cpu_s),
            # Of each thread, too, of which qemu-img has up to 64 for I/O: 8 MiB each, as is usual,
            # would be half of the memory ("qemu_thread_create: Resource temporarily unavailable").
            (resource.RLIMIT_STACK, 1024**2),
            (resource.RLIMIT_NOFILE, 64),
            (resource.RLIMIT_CORE, 0),
        ):
            resource.setrlimit(what, (most, most))

    def _unshare(self) -> None:
        flags = _NEW_MOUNTS | _NEW_UTS | _NEW_IPC | _NEW_PID | _NEW_NET
        _check(_libc.unshare(flags), "unshare")

    def _leave_files(self) -> None:
        """A root of our own in memory, with the libraries and the disk."""
        if any(name.startswith("namespaces") for name in self.skipped):
            raise OSError(0, "not without a namespace of our own")
        sources = {path: os.open(path, os.O_PATH) for path in _LIBRARIES if _is_folder(path)}
        links = {path: os.readlink(path) for path in _LIBRARIES if os.path.islink(path)}
        disk = None if self._disk is None else os.open(str(self._disk), os.O_PATH)
        _mount("none", "/", None, _REC | _PRIVATE)
        root = "/tmp"  # noqa: S108 - a folder that is everywhere, to mount upon
        _mount("tmpfs", root, "tmpfs", _NOSUID, "mode=755,size=1m")
        for path, target in links.items():
            os.symlink(target, root + path)
        for path, descriptor in sources.items():
            os.mkdir(root + path)
            _mount(f"/proc/self/fd/{descriptor}", root + path, None, _BIND | _REC)
            _mount("none", root + path, None, _BIND | _REMOUNT | _RDONLY | _NOSUID | _NODEV)
            os.close(descriptor)
        os.mkdir(f"{root}/dev")
        if disk is not None:
            self._give_disk(disk, f"{root}/dev/disk")
            os.close(disk)
        _mount("none", root, None, _REMOUNT | _RDONLY | _NOSUID)
        os.chdir(root)
        _check(_libc.syscall(_PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
        _check(_libc.umount2(b".", _DETACH), "umount")
        os.chdir("/")

    def _give_disk(self, descriptor: int, path: str) -> None:
        """A device node of the jailed user's own; a file (in tests) as it is, with its owner."""
        found = os.fstat(descriptor)
        if stat.S_ISBLK(found.st_mode):
            os.mknod(path, stat.S_IFBLK | 0o400, found.st_rdev)
            os.chown(path, _NOBODY, _NOBODY)
            return
        with open(path, "wb"):
            pass
        _mount(f"/proc/self/fd/{descriptor}", path, None, _BIND)
        _mount("none", path, None, _BIND | _REMOUNT | _RDONLY | _NOSUID)
        self._user = found.st_uid

    def _empty_bounding_set(self) -> None:
        number = 0
        while _libc.prctl(_CAPBSET_DROP, number, 0, 0, 0) == 0:
            number += 1
        if ctypes.get_errno() != errno.EINVAL:  # EINVAL: this kernel knows no more of them
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def _become_nobody(self) -> None:
        if any(name.startswith("files") for name in self.skipped) and self._disk is not None:
            raise OSError(0, "the disk is not in a place of its own")
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(self._user, self._user, self._user)

    def _drop_capabilities(self) -> None:
        header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
        none = (ctypes.c_uint32 * 6)()
        _check(_libc.capset(header, none), "capset")


def _is_folder(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def main() -> None:
    """Enter the jail and become the program, or wait for it where it needs to be a child."""
    spec, argv = json.loads(sys.argv[1]), sys.argv[2:]
    _libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != spec["parent"]:
        os._exit(1)  # the daemon died before we could be told
    jail = Jail(spec)
    jail.enter()
    child = os.fork()  # the first process of the new namespace: with it all others end
    if child == 0:
        jail.drop()
        jail.report()
        os.close(int(spec["report"]))
        try:
            os.execve(argv[0], argv, {"LC_ALL": "C"})  # noqa: S606 - no shell is the point
        except OSError as err:
            os.write(2, f"{argv[0]}: {err.strerror}\n".encode())
            os._exit(127)
    for descriptor in range(3, 64):  # the child's sockets: their end must be seen
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:  # end as it ended, so that whoever waits learns the signal
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
