"""The lab's machine: boots user-mode-linux, passes bytes between it and the caller, ends it.

A guest is a dozen processes of the host. They live in a PID namespace of their own, whose first
process, the keeper, holds a pipe from lab: when lab ends, however it ends, the keeper reads the end
of that pipe, ends, and the host's kernel ends all the rest. Where no namespace can be had, the
keeper adopts the guest's orphans and ends them one by one, and lab does so for the keeper's.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import resource
import select
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

#: Made by scripts/setup; what it does stands in xstate.c.
XSTATE: Final = Path(__file__).resolve().parents[2] / ".venv/lib/lab-xstate.so"

GUEST: Final = Path(__file__).resolve().parents[1] / "lab-guest"
BOOT_S: Final = 60.0
END_S: Final = 10.0
LOG_BYTES: Final = 1 << 16

# linux/sched.h, linux/prctl.h
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36

libc = ctypes.CDLL(None, use_errno=True)

Sinks = dict[int, Callable[[bytes], object]]


class Ended(Exception):
    """A signal asks lab to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclass(frozen=True)
class Machine:
    """What to boot.

    folder: private, holds job.json and the disks by the names given here.
    disks: file name in folder by ubd unit, 0 to 15.
    memory_folder: where the file that is the guest's memory lies, without a name.
    terminal: whether the caller's terminal becomes the guest's /dev/tty1.
    raid6: whether to run the kernel's RAID 6 benchmark, without which RAID 6 crashes.
    """

    kernel: str
    folder: Path
    disks: dict[int, str]
    memory_bytes: int
    memory_folder: Path
    cpu: int
    terminal: bool
    raid6: bool
    verbose: bool


@dataclass(frozen=True)
class Wires:
    """The guest's ends of what leads to lab, as descriptors; `console` only with a terminal."""

    log: int
    out: int
    err: int
    console: int | None

    def all(self) -> list[int]:
        wires = (self.log, self.out, self.err, self.console)
        return [file for file in wires if file is not None]


def kernel_argv(machine: Machine, wires: Wires) -> list[str]:
    """The kernel's command line. Source: `linux.uml --help`, kernel-parameters.txt."""
    # zswap has nothing to swap to; the RAID 6 benchmark takes longer than the rest of the boot.
    skipped = ["init_zswap"] if machine.raid6 else ["init_zswap", "raid6_select_algo"]
    return [
        *(machine.kernel, f"mem={machine.memory_bytes >> 20}M", "uml_dir=uml/", "umid=guest"),
        *("root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw"),
        *(f"ubd{unit}={name}" for unit, name in machine.disks.items()),
        *("con=null", "ssl=null", f"con0=null,fd:{wires.log}"),
        *(f"ssl0=null,fd:{wires.out}", f"ssl1=null,fd:{wires.err}"),
        *([] if wires.console is None else [f"con1=fd:{wires.console}"]),
        # A bare `noreboot` would become an argument of init, too.
        *("panic=-1", "noreboot=1", "pty.legacy_count=0"),
        f"initcall_blacklist={','.join(skipped)}",
        *([] if machine.verbose else ["quiet"]),
        # Python without `site` starts twice as fast.
        *(f'init="{os.path.realpath(sys.executable)}"', "--", "-E", "-s", "-S"),
        *(f'"{GUEST}"', f'"{machine.folder}"'),
    ]


# --- the keeper ---------------------------------------------------------------------------------


def enter_namespace() -> bool:
    """Make the next child the first process of a PID namespace; False: this host does not let us.

    An unprivileged user needs a user namespace for that, in which he stays himself.
    """
    if libc.unshare(CLONE_NEWPID) == 0:
        return True
    uid, gid = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWPID) != 0:
        return False
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    return True


def end_children(own_namespace: bool) -> None:
    """Kill and reap all that is below us; return when nothing is left."""
    while True:
        if own_namespace:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
        else:
            for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(child), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)  # whose children, if any, are ours now: look again
        except ChildProcessError:
            return


def exec_kernel(machine: Machine, wires: Wires) -> NoReturn:
    """Become user-mode-linux."""
    os.setsid()  # when it panics it signals its whole process group
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.sched_setaffinity(0, {machine.cpu})
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(machine.folder)  # so that no path on its command line needs quotes
    for file in wires.all():
        os.set_inheritable(file, True)
    os.dup2(wires.log, 1)
    os.dup2(wires.log, 2)
    env = {"PATH": "/usr/bin:/bin", "HOME": str(machine.folder)}
    env["TMPDIR"] = str(machine.memory_folder)
    if XSTATE.exists():
        env["LD_PRELOAD"] = str(XSTATE)
    os.execve(machine.kernel, kernel_argv(machine, wires), env)


def keep(machine: Machine, lifeline: int, wires: Wires, own_namespace: bool) -> None:
    """Run the guest until it ends or lab does; in the latter case, tidy up in lab's stead."""
    os.setsid()
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    null = os.open("/dev/null", os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    kernel = os.fork()
    if kernel == 0:
        try:
            exec_kernel(machine, wires)
        finally:
            os._exit(127)
    for file in wires.all():
        os.close(file)
    waiting = select.poll()
    waiting.register(lifeline, select.POLLIN)
    waiting.register(os.pidfd_open(kernel), select.POLLIN)
    ready = [file for file, _ in waiting.poll()]
    end_children(own_namespace)
    if lifeline in ready:
        shutil.rmtree(machine.folder, ignore_errors=True)


def end_keeper(keeper: int, ended: int, lifeline: int) -> None:
    """Let go of the keeper and wait until it, and with it the guest, is gone."""
    os.close(lifeline)
    if not select.select([ended], [], [], END_S)[0]:
        os.kill(keeper, signal.SIGKILL)
    end_children(own_namespace=False)


# --- lab's own side -----------------------------------------------------------------------------


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Turn the signals that ask a program to end into Ended, once; later ones are ignored."""
    asked = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in asked}

    def end(number: int, _frame: FrameType | None) -> None:
        for other in asked:
            signal.signal(other, signal.SIG_IGN)
        raise Ended(number)

    for number in asked:
        if before[number] != signal.SIG_IGN:  # as under nohup
            signal.signal(number, end)
    try:
        yield
    finally:
        for number in asked:
            signal.signal(number, before[number])


@contextlib.contextmanager
def raw_terminal(master: int) -> Iterator[None]:
    """Let each key go to the guest's terminal, and the size of our window with it."""

    def copy_size(*_: object) -> None:
        size = fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8))
        fcntl.ioctl(master, termios.TIOCSWINSZ, size)

    before = termios.tcgetattr(0)
    tty.setraw(0)
    copy_size()
    signal.signal(signal.SIGWINCH, copy_size)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(0, termios.TCSADRAIN, before)


def write_all(file: int, data: bytes) -> None:
    """Write all of it, also where the caller has made the file non-blocking."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(file, rest) :]
        except BlockingIOError:
            select.select([], [file], [])


def read(file: int) -> bytes:
    """What can be read now; nothing at the end, which for a terminal is an error."""
    try:
        return os.read(file, 1 << 16)
    except OSError:
        return b""


def pass_on(sinks: Sinks, ended: int, booted: Callable[[], bool]) -> None:
    """Give what each file has to its sink, until `ended` is readable and nothing is left.

    Raises:
        TimeoutError: not booted within BOOT_S.
        Ended: our terminal is gone.
    """
    waiting = select.poll()
    for file in (*sinks, ended):
        waiting.register(file, select.POLLIN)
    deadline: float | None = time.monotonic() + BOOT_S
    while True:
        left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready = waiting.poll(None if left_s is None else left_s * 1000)
        if not ready and not booted():
            raise TimeoutError
        if not ready:
            deadline = None
        for file, _ in ready:
            if file == ended:
                break
            if data := read(file):
                sinks[file](data)
            elif file == 0:
                raise Ended(signal.SIGHUP)
            else:
                waiting.unregister(file)
        else:
            continue
        break
    for file in sinks:
        while file != 0 and select.select([file], [], [], 0)[0] and (data := read(file)):
            sinks[file](data)


def boot(machine: Machine) -> bytes:
    """Boot the machine and stay until it has ended; answers the end of the kernel's log.

    Raises:
        Ended: a signal came.
        TimeoutError: the guest did not come up within BOOT_S.
        BrokenPipeError: nobody reads our output any more.
        In each case the guest is gone.
    """
    lifeline, our_lifeline = os.pipe()
    (log_in, log), (out_in, out), (err_in, err) = os.pipe(), os.pipe(), os.pipe()
    master, console = os.openpty() if machine.terminal else (None, None)
    wires = Wires(log, out, err, console)
    own_namespace = enter_namespace()
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    keeper = os.fork()
    if keeper == 0:
        try:
            for file in (our_lifeline, log_in, out_in, err_in, *([master] if master else [])):
                os.close(file)
            keep(machine, lifeline, wires, own_namespace)
        finally:
            os._exit(0)
    for file in (lifeline, *wires.all()):
        os.close(file)
    ended = os.pidfd_open(keeper)
    kernel_log = bytearray()

    def keep_log(data: bytes) -> None:
        kernel_log.extend(data)
        del kernel_log[:-LOG_BYTES]
        if machine.verbose:
            write_all(2, data)

    sinks: Sinks = {
        log_in: keep_log,
        out_in: lambda data: write_all(1, data),
        err_in: lambda data: write_all(2, data),
    }
    with contextlib.ExitStack() as stack:
        stack.callback(end_keeper, keeper, ended, our_lifeline)
        if master is not None:
            terminal = master
            stack.enter_context(raw_terminal(terminal))
            sinks |= {terminal: sinks[out_in], 0: lambda data: write_all(terminal, data)}
        pass_on(sinks, ended, (machine.folder / "booted").exists)
    return bytes(kernel_log)
