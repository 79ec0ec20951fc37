"""The process that thaws guests whatever becomes of the daemon.

Run as a program of its own. Told on stdin, line by line:

    arm SECONDS URI DOMAIN     thaw the domain (a UUID) in SECONDS, unless it is disarmed before
    disarm URI DOMAIN

When stdin ends, because the daemon ended however it did, all that is armed is thawed at once. A
thaw that fails, an agent that is silent, is tried again for as long as the domain runs.
"""

from __future__ import annotations

import select
import sys
import threading
import time
from contextlib import suppress
from os import read

import libvirt

_RETRY_S, _LAST_RETRY_S = 1.0, 30.0
#: After so long a guest that never answers is left alone.
_GIVE_UP_S = 3600.0
_AGENT_TIMEOUT_S = 5


def thaw(uri: str, domain_id: str) -> None:
    """Until it is done, or there is nothing to thaw."""
    retry_s, until = _RETRY_S, time.monotonic() + _GIVE_UP_S
    while time.monotonic() < until:
        try:
            connection = libvirt.open(uri)
            try:
                domain = connection.lookupByUUIDString(domain_id)
                if not domain.isActive():
                    return
                with suppress(libvirt.libvirtError):  # not every driver has it
                    domain.agentSetResponseTimeout(_AGENT_TIMEOUT_S)
                domain.fsThaw()
            finally:
                connection.close()
        except libvirt.libvirtError as err:
            if err.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return
            sys.stderr.write(f"thaw watchdog: {domain_id}: {err}\n")
            time.sleep(retry_s)
            retry_s = min(retry_s * 2, _LAST_RETRY_S)
        else:
            return


def watch(stdin: int) -> None:
    """Serve until stdin ends, then until all that was armed is thawed."""
    armed: dict[tuple[str, str], float] = {}
    thawing: list[threading.Thread] = []
    pending = b""

    def begin(key: tuple[str, str]) -> None:
        thread = threading.Thread(target=thaw, args=key)
        thread.start()  # one that is silent must not hold up the next
        thawing.append(thread)

    while True:
        now = time.monotonic()
        for key in [key for key, due in armed.items() if due <= now]:
            begin(key)
            del armed[key]
        wait_s = min(armed.values()) - now if armed else None
        if not select.select([stdin], [], [], wait_s)[0]:
            continue
        data = read(stdin, 65536)
        if not data:
            break
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            match line.decode().split(" "):
                case ["arm", seconds, uri, domain_id]:
                    armed[uri, domain_id] = time.monotonic() + float(seconds)
                case ["disarm", uri, domain_id]:
                    armed.pop((uri, domain_id), None)
    for key in armed:
        begin(key)
    for thread in thawing:
        thread.join()


def main() -> None:
    """Watch; libvirt's errors are raised, and it need not write them as well."""
    libvirt.registerErrorHandler(lambda *_: None, None)
    watch(0)


if __name__ == "__main__":
    main()
