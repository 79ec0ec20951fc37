"""Which guests have to be quiet for a snapshot, and whether each can be frozen.

Nothing is frozen here, so all of it may be tried again. A libvirtd that has just been started says
that it is connected to the agent of a guest before it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog

from blockd.catalog import Catalog
from blockd.domain.errors import BlockdError, GuestRefused, HypervisorUnreachable
from blockd.domain.guest import AttachmentStatus, Guest, GuestKey
from blockd.domain.snapshot import Quiesce
from blockd.service.guest_ports import Hypervisors
from blockd.service.quiet import Quiet

log = structlog.get_logger()

_RETRY_S: Final = 0.2


class GuestsToFreeze:
    """Asks libvirt, and the agents."""

    def __init__(self, catalog: Catalog, hypervisors: Hypervisors, agent_timeout_s: float) -> None:
        """`agent_timeout_s`: how long an agent may take for one answer."""
        self._catalog, self._hypervisors = catalog, hypervisors
        # Whoever waits for it may hold the turns of all classes of his volumes.
        self._patience_s = agent_timeout_s * 2

    async def check(self, volume_ids: Sequence[str]) -> None:
        """See, before anything is promised, that every guest of these volumes can be frozen.

        What may pass, an agent or a libvirt that does not answer, is asked again for as long as an
        agent may take for two answers.

        Raises:
            GuestRefused: one has no agent, or a silent one, or is paused, or no running guest has
                one of the volumes.
            HypervisorUnreachable: libvirt does not answer.
        """
        guests, silent = await self._asked(volume_ids, is_patient=True)
        for volume_id in volume_ids:
            if volume_id not in volumes_of(guests):
                raise GuestRefused(
                    f"quiesce: no running guest has volume {volume_id}, so there is nobody to be "
                    "quiet: ask for quiesce auto or none"
                )
        for guest in guests:
            if (why := _obstacle(guest) or silent.get(guest.key)) is not None:
                raise GuestRefused(f"quiesce: domain {guest.name} {why}")

    async def able(self, volume_ids: Sequence[str], quiet: Quiet, quiesce: Quiesce) -> list[Guest]:
        """Those that can be frozen; `quiet.reason` says why not all. With `require`, as `check`."""
        try:
            guests, silent = await self._asked(volume_ids, is_patient=quiesce is Quiesce.REQUIRE)
        except (GuestRefused, HypervisorUnreachable) as err:
            quiet.reason = str(err)
            return []
        except Exception as err:  # whatever it is: a snapshot is not to fail for the guest's sake
            log.exception("guests not known")
            quiet.reason = f"what guests have the volume is not known: {err}"
            return []
        able = []
        for guest in guests:
            if (why := _obstacle(guest) or silent.get(guest.key)) is None:
                able.append(guest)
            else:
                quiet.reason = f"domain {guest.name} {why}"
        return able

    async def _asked(
        self, volume_ids: Sequence[str], *, is_patient: bool
    ) -> tuple[list[Guest], dict[GuestKey, str]]:
        """The active guests that have one of the volumes, and why some agents do not answer.

        Args:
            is_patient: what may pass is asked again, until the deadline.

        Raises:
            GuestRefused, HypervisorUnreachable: it cannot be told.
        """
        now = asyncio.get_running_loop().time
        until = now() + self._patience_s
        guests, silent = list[Guest](), dict[GuestKey, str]()
        while True:
            is_last = not is_patient or now() + _RETRY_S >= until
            try:
                async with asyncio.timeout_at(until):
                    guests = await self._having(volume_ids)
                silent = await self._silent(guests, max(until - now(), _RETRY_S))
                if is_last or not silent:
                    return guests, silent
            except HypervisorUnreachable:
                if is_last:
                    raise
            except TimeoutError:
                if silent:  # as it was a moment ago
                    return guests, silent
                raise HypervisorUnreachable(
                    f"libvirt does not answer within {self._patience_s:g} s: see that it runs"
                ) from None
            await asyncio.sleep(_RETRY_S)

    async def _having(self, volume_ids: Sequence[str]) -> list[Guest]:
        """As libvirt says now."""
        wanted = set(volume_ids)
        rows = await self._catalog.read(lambda tx: tx.attachments.all())
        keys = {
            one.guest
            for one in rows
            if one.volume_id in wanted and one.status is not AttachmentStatus.ATTACHING
        }
        found = await asyncio.gather(*(self._hypervisors.guest(key) for key in keys))
        return [guest for guest in found if guest is not None and _has_live(guest, wanted)]

    async def _silent(self, guests: Sequence[Guest], timeout_s: float) -> dict[GuestKey, str]:
        """Of those that nothing else is in the way of, whose agent does not answer, and why."""
        asked = [guest for guest in guests if _obstacle(guest) is None]
        outcomes = await asyncio.gather(
            *(self._hypervisors.ask_agent(guest.key, timeout_s) for guest in asked),
            return_exceptions=True,
        )
        silent = {}
        for guest, outcome in zip(asked, outcomes, strict=True):
            if isinstance(outcome, BlockdError):
                silent[guest.key] = (
                    f"has a guest agent that does not answer: {outcome}: see that "
                    "qemu-guest-agent runs in it"
                )
            elif outcome is not None:
                raise outcome
        return silent


def volumes_of(guests: Sequence[Guest]) -> frozenset[str]:
    """Those that they have now, and not in their definition alone."""
    return frozenset(disk.volume_id for guest in guests for disk in guest.disks if disk.live)


def _has_live(guest: Guest, volume_ids: set[str]) -> bool:
    return guest.is_active and not volumes_of([guest]).isdisjoint(volume_ids)


def _obstacle(guest: Guest) -> str | None:
    """Why it cannot be frozen."""
    if guest.is_paused:
        return "is paused, so its agent cannot answer: resume it"
    if not guest.has_agent:
        return "has no guest agent connected: install qemu-guest-agent in it"
    return None
