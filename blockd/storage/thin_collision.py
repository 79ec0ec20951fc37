"""Thin devices that stand in LVM's way: what a crash left of a creation, and what nobody knows.

LVM makes a thin LV in three steps: its text of the volume group, with the LV and a message that is
owed to the kernel; the message; the kernel's transaction id. A power cut between the last two
leaves a device that LVM wants to make again at every later change, and cannot: "already contain
thin device". Removing that device helps, and loses nothing: the command never ended, so nobody was
told of the LV (docs/decisions/0012-thin-collision.md).

Any other device that LVM does not know is somebody's data for all we know. It is never removed,
but kept under a number that LVM does not reach.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import structlog

from blockd.domain.errors import StorageError
from blockd.storage.dm import DeviceMapper
from blockd.storage.lvm_commands import LvmCommands
from blockd.storage.lvm_lock import lvm_lock
from blockd.storage.pool_status import PoolStatus
from blockd.storage.vg_text import PoolText, ThinLv, parse_pool

log = structlog.get_logger()

#: The highest number of a thin device. LVM takes the one after the highest that it knows.
LAST_ID = 2**24 - 1
_MOST_KEPT = 4096

_LOCK_S = 60.0


def is_kept(device_id: int) -> bool:
    """Whether it is the number of a device that was set aside."""
    return device_id > LAST_ID - _MOST_KEPT


class ThinCollision:
    """The way of LVM through the thin devices of one pool. All within the class's turn.

    Errors of all methods: `StorageError`; what could not be done is left as it was.
    """

    def __init__(
        self,
        pool: str,
        pool_uuid: str,
        tag: str,
        lvm: LvmCommands,
        mapper: DeviceMapper,
        status: Callable[[], Awaitable[PoolStatus]],
    ) -> None:
        """`tag` marks LVs of ours; `status` is the pool's, from the kernel."""
        self._pool, self._pool_uuid, self._tag = pool, pool_uuid, tag
        self._lvm, self._mapper, self._status = lvm, mapper, status
        self._is_clearing = False
        # How many LVM commands had failed when LVM's text was seen to have no message that the
        # kernel has heard; and devices whose removal may have been lost behind one.
        self._checked_at: int | None = None
        self._maybe_left: set[int] = set()

    async def clear_way(self, device_id: int) -> bool:
        """As `LvmCommands.clear_way`: a command failed because of this device. Never raises."""
        if self._is_clearing:  # what is called from here must not begin it again
            return False
        self._is_clearing = True
        try:
            return await self.undo_cut_short() or await self.set_aside_unknown(device_id)
        except StorageError as err:
            log.exception("a thin device stays in LVM's way", thin_id=device_id, reason=str(err))
            return False
        finally:
            self._is_clearing = False

    async def cut_short(self) -> list[ThinLv]:
        """The creation that was cut short, if there is one."""
        text, transaction_id = await self._look()
        return text.cut_short(transaction_id)

    async def undo_cut_short(self) -> bool:
        """Undo it; whether there was one."""
        text, transaction_id = await self._look()
        cut_short = text.cut_short(transaction_id)
        if not cut_short:
            return False
        async with self._undisturbed(transaction_id):
            for lv in cut_short:
                log.warning("undoing a creation cut short", lv=lv.name, thin_id=lv.device_id)
                # The kernel may not have had the message; then there is nothing in LVM's way.
                await self._tell(f"delete {lv.device_id}", passes=errno.ENODATA)
        # LVM repeats its message, as it does in every command, and then has an LV to remove.
        if ours := [lv.name for lv in cut_short if self._tag in lv.tags]:
            await self._lvm.remove(ours, self._tag)
        return True

    async def finish_removal(self) -> None:
        """Carry out a removal that was cut short when LVM had forgotten the LV, and no more.

        LVM would do so itself, but only with the next change: until then the space is not free.
        It knows by the kernel's transaction id that its messages were heard.
        """
        text, transaction_id = await self._look()
        removed = text.owed_removals(transaction_id)
        if not removed:
            return
        async with self._undisturbed(transaction_id):
            log.warning("finishing a removal cut short", pool=self._pool, thin_ids=removed)
            for device_id in removed:
                await self._tell(f"delete {device_id}", passes=errno.ENODATA)
            await self._tell(f"set_transaction_id {transaction_id} {transaction_id + 1}")

    async def remove(self, lvs: Sequence[str]) -> None:
        """Remove LVs of ours, as `LvmCommands.remove`, and see that their devices go with them.

        A message that is still in LVM's text when the kernel has heard it, as a power cut or a
        crash between the two leaves it, swallows the next removal: LVM puts that behind it, takes
        the transaction id, which agrees, for a sign that all was heard, and forgets both (2.03.16).
        """
        if self._checked_at != self._lvm.failures:
            failures = self._lvm.failures
            text, transaction_id = await self._look()
            if text.has_heard(transaction_id):
                # It stays there until something is removed: this may name LVs that are gone.
                self._maybe_left |= {lv.device_id for lv in text.lvs if lv.name in lvs}
            else:
                self._checked_at = failures
        try:
            await self._lvm.remove(lvs, self._tag)
        finally:
            if self._maybe_left:
                await self._drop_left()

    async def _drop_left(self) -> None:
        text, transaction_id = await self._look()
        left = self._maybe_left - {lv.device_id for lv in text.lvs}
        async with self._undisturbed(transaction_id):
            for device_id in left:
                if await self._tell(f"delete {device_id}", passes=errno.ENODATA):
                    log.warning("LVM had lost a removal", pool=self._pool, thin_id=device_id)
        self._maybe_left.clear()

    async def set_aside_unknown(self, device_id: int) -> bool:
        """Give a device that LVM does not know a number out of its reach; False if LVM does."""
        text, transaction_id = await self._look()
        if any(lv.device_id == device_id for lv in text.lvs):
            return False
        async with self._undisturbed(transaction_id):
            kept_id = await self.keep(device_id)
            try:
                await self._tell(f"delete {device_id}")
            except StorageError:  # somebody uses it
                await self._tell(f"delete {kept_id}")
                raise
        return True

    async def keep(self, device_id: int) -> int:
        """A second picture of a device, under a number that LVM does not reach; which."""
        for kept_id in range(LAST_ID, LAST_ID - _MOST_KEPT, -1):
            if await self._tell(f"create_snap {kept_id} {device_id}", passes=errno.EEXIST):
                log.critical(
                    "a thin device unknown to LVM was in its way, and is kept as another",
                    pool=self._pool,
                    thin_id=device_id,
                    kept_as=kept_id,
                )
                return kept_id
        raise StorageError(f"pool {self._pool} holds {_MOST_KEPT} devices that were set aside")

    async def _look(self) -> tuple[PoolText, int]:
        """The pool as LVM has it, and the kernel's transaction id before that was read."""
        transaction_id = (await self._status()).transaction_id
        text = await self._lvm.text()
        return await asyncio.to_thread(parse_pool, text, self._pool), transaction_id

    @asynccontextmanager
    async def _undisturbed(self, transaction_id: int) -> AsyncIterator[None]:
        """No LVM command changes the pool within the block, nor has one since it was looked at."""
        async with lvm_lock(self._lvm.vg, timeout_s=_LOCK_S):
            if (await self._status()).transaction_id != transaction_id:
                raise StorageError(f"pool {self._pool} was changed by another LVM command")
            yield

    async def _tell(self, message: str, *, passes: int = 0) -> bool:
        """Send the pool a message; False when the kernel answers `passes`, an errno."""
        try:
            await asyncio.to_thread(self._mapper.message, self._pool_uuid, message)
        except StorageError as err:
            if passes and getattr(err.__cause__, "errno", None) == passes:
                return False
            raise
        return True
