"""What tests of a misbehaving LVM wait for, and see to, whatever it is that runs LVM."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.lvm_cases import Plan
from tests.faults.scenarios import SIZE
from tests.support.agreement import expect_agreement
from tests.support.client import Api, ApiError
from tests.support.daemon import VG, Daemon, Place
from tests.support.lvm_stand_in import LASTING, OF_ALL, OF_REPORTS, REPORTS, StandIn


class Request(threading.Thread):
    """The one request, which may be refused, but answered it must be."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__()
        self._work = work
        self.refusal: ApiError | None = None
        self.failure: BaseException | None = None
        self.start()

    def run(self) -> None:
        """In the thread."""
        try:
            self._work()
        except ApiError as error:
            self.refusal = error
        except BaseException as error:
            self.failure = error

    def answered(self) -> None:
        """Wait for the answer."""
        self.join(120)
        assert not self.is_alive(), "the request was not answered"
        assert self.failure is None, self.failure


def until_at_rest(api: Api, timeout_s: float = 100) -> None:
    """Wait until nothing is under way, and no problem is left."""
    deadline = time.monotonic() + timeout_s
    while True:
        health = api.host("GET", "health")
        if not health["queued"] and not health["problems"]:
            return
        assert time.monotonic() < deadline, (health["queued"], health["problems"])
        time.sleep(0.05)


def watch_trouble(api: Api, stand_in: StandIn, call: str, how: str) -> None:
    """While a command hangs: reads are answered, and in the end health names it.

    And whoever keeps it from going on.
    """
    deadline = time.monotonic() + 30
    while True:
        began = time.monotonic()
        health = api.host("GET", "health")
        api.all("volumes", "&include_deleted=true")
        api.all("snapshots")
        assert time.monotonic() - began < 5, "reads wait for LVM"
        if named := [line for line in health["problems"] if f"lvm {call} " in line]:
            assert ("is held by pid" in named[0]) == (how == "lock held"), named
            break
        assert time.monotonic() < deadline, (call, health)
        time.sleep(0.05)
    stand_in.release()


def plans(calls: list[str]) -> list[Plan]:
    """Each call misbehaves in each way; and what is read after a failure misbehaves, too."""
    found: list[Plan] = []
    for number, verb in enumerate(calls, 1):
        found += [{number: how} for how in OF_ALL]
        if verb in REPORTS:
            found += [{number: how} for how in OF_REPORTS]
    return found


@contextmanager
def logged(daemon: Daemon, what: str) -> Iterator[None]:
    """What goes wrong within bears what the daemon said meanwhile."""
    log_begins = daemon.log.stat().st_size
    try:
        yield
    except BaseException as error:
        log = daemon.log.read_bytes()[log_begins:].decode().splitlines()
        told = [line for line in log if '"method": "GET"' not in line]
        error.add_note("\n".join([what, *told]))
        raise


def after_reboot(place: Place) -> None:
    """As the host comes up: nothing is active, and there is no front."""
    for front in Path("/dev/blockd").glob("*"):
        subprocess.run(["/sbin/dmsetup", "remove", f"blockd-{front.name}"], check=True)
        front.unlink()
    place.lvm("vgchange", "--activate", "n", VG)


def start_badly(
    place: Place,
    stand_in: StandIn,
    plan: Plan,
    in_the_end: Callable[[Api], object] = until_at_rest,
) -> str:
    """Start a daemon with such an LVM; what it said if it did not come up."""
    ended: list[str] = []

    def start() -> None:
        try:
            with Daemon(place) as daemon:
                in_the_end(daemon.api)
        except AssertionError as error:
            ended.append(str(error).splitlines()[-1])

    starting = threading.Thread(target=start)
    starting.start()
    if set(plan.values()) & set(LASTING):
        stand_in.await_hit()
        starting.join(6)  # beyond the daemon's patience, whether it waits or leaves
        stand_in.release()
    starting.join(100)
    assert not starting.is_alive()
    return ended[0] if ended else ""


def go_wrong(
    daemon: Daemon,
    stand_in: StandIn,
    plan: Plan,
    act: Callable[[], object] | None,
    in_the_end: Callable[[], object],
) -> list[str]:
    """One case; answers LVM's verbs.

    Args:
        act: has LVM run; None: the daemon's start did, to which the plan was told.
        in_the_end: waits for what shall come of it.
    """
    api = daemon.api
    with logged(daemon, str(plan)):
        if act is not None:
            stand_in.plan(plan)
        began = time.monotonic()
        request = Request(act or (lambda: None))
        try:
            for number, how in plan.items():
                if how in LASTING:
                    stand_in.await_hit()
                    watch_trouble(api, stand_in, stand_in.calls()[number - 1], how)
        finally:
            request.answered()
        in_the_end()
        until_at_rest(api)
        took_s, calls = time.monotonic() - began, stand_in.calls()
        assert len(calls) >= max(plan, default=1), (plan, calls)
        stand_in.plan({})
        expect_next(daemon)
        stand_in.expect_one_at_a_time()
    print(f"  {plan}: {took_s:.1f} s, {' '.join(calls)}: {request.refusal or 'done'}", flush=True)
    return calls


def expect_next(daemon: Daemon) -> None:
    """The next create and delete succeed, and nothing is left over."""
    made = daemon.api.create_volume("next", SIZE)
    daemon.api.block("DELETE", f"volumes/{made}")
    daemon.api.idle()
    expect_agreement(daemon.place)
