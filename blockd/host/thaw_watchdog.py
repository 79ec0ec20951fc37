"""The process that thaws guests whatever becomes of the daemon.

Run as a program of its own. Told on stdin, line by line:

    arm SECONDS URI DOMAIN     thaw the domain (a UUID) in SECONDS, unless it is disarmed before
    disarm URI DOMAIN

When stdin ends, because the daemon ended however it did, all that is armed is thawed at once. A
thaw that fails, an agent that is silent, is tried again for as long as the domain runs.

Each attempt is a process of its own (`thaw_watchdog.py URI DOMAIN`): libvirt's client can hang
without end, and crash, and neither may keep the next attempt from being made.
"""

from __future__ import annotations

import select
import subprocess
import sys
import threading
import time
from contextlib import suppress
from os import read

_RETRY_S, _LAST_RETRY_S = 1.0, 30.0
#: After so long a guest that never answers is left alone.
_GIVE_UP_S = 3600.0
_ATTEMPT_S, _AGENT_TIMEOUT_S = 20.0, 5


def attempt(uri: str, domain_id: str) -> int:
    """Thaw once; the exit status: 0 if it is done, or there is nothing to thaw."""
    import libvirt  # noqa: PLC0415 - not in the process that watches

    libvirt.registerErrorHandler(lambda *_: None, None)  # they are raised, and need not be written
    try:
        domain = libvirt.open(uri).lookupByUUIDString(domain_id)
        if domain.isActive():
            with suppress(libvirt.libvirtError):  # not every driver has it
                domain.agentSetResponseTimeout(_AGENT_TIMEOUT_S)
            domain.fsThaw()
    except libvirt.libvirtError as err:
        if err.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return 0
        complain(f"{domain_id}: {err}")
        return 1
    return 0


def complain(line: str) -> None:
    """Say it, if anybody still listens: stderr may have gone with the daemon, and raise EPIPE."""
    with suppress(OSError):
        sys.stderr.write(f"thaw watchdog: {line}\n")


def thaw(uri: str, domain_id: str, is_over: threading.Event) -> None:
    """Until it is done, or `is_over`: somebody else has thawed it, or froze it anew."""
    retry_s, until = _RETRY_S, time.monotonic() + _GIVE_UP_S
    argv = [sys.executable, "-I", __file__, uri, domain_id]
    while not is_over.is_set() and time.monotonic() < until:
        try:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, timeout=_ATTEMPT_S, check=False)
            if done.returncode == 0:
                return
        except (OSError, subprocess.TimeoutExpired) as err:
            complain(f"{domain_id}: {err}")
        is_over.wait(retry_s)
        retry_s = min(retry_s * 2, _LAST_RETRY_S)


def watch(stdin: int) -> None:
    """Serve until stdin ends, then until all that was armed is thawed."""
    armed: dict[str, float] = {}
    thawing: dict[str, threading.Event] = {}
    pending = b""

    def begin(what: str) -> None:
        is_over = threading.Event()
        # A thread for each: one that is silent must not hold up the next.
        arguments = *what.split(" "), is_over
        thread = threading.Thread(target=thaw, args=arguments, name=f"thaw {what}")
        try:
            thread.start()
        except RuntimeError as err:  # no thread to be had just now
            complain(f"{what}: {err}")
            armed[what] = time.monotonic() + _RETRY_S
            return
        thawing[what] = is_over
        armed.pop(what, None)

    def leave(what: str) -> None:
        armed.pop(what, None)
        if (is_over := thawing.pop(what, None)) is not None:
            is_over.set()

    is_told = True
    while is_told or armed:
        now = time.monotonic()
        for what in [what for what, due in armed.items() if due <= now or not is_told]:
            begin(what)
        if not is_told:
            time.sleep(_RETRY_S if armed else 0)
            continue
        wait_s = max(min(armed.values()) - now, 0) if armed else None
        if not select.select([stdin], [], [], wait_s)[0]:
            continue
        data = read(stdin, 65536)
        is_told = bool(data)
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            match line.decode().split(" "):
                case ["arm", seconds, uri, domain_id]:
                    leave(f"{uri} {domain_id}")
                    armed[f"{uri} {domain_id}"] = time.monotonic() + float(seconds)
                case ["disarm", uri, domain_id]:
                    leave(f"{uri} {domain_id}")


def main() -> int:
    """Watch, or with a URI and a domain, make one attempt."""
    if len(sys.argv) > 1:
        return attempt(*sys.argv[1:])
    watch(0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
