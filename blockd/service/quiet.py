"""How quiet it was while snapshots were taken: what `freezes.py` tells, and snapshots record."""

from __future__ import annotations

from dataclasses import dataclass, field

from blockd.domain.snapshot import Consistency


@dataclass(slots=True)
class Quiet:
    """How quiet it was; known when the block of `Freezes.quiet` has ended.

    Attributes:
        frozen_ms: from the first freeze to the last thaw; None: nothing was frozen.
        reason: why a guest was not frozen, or not for all of the block; None: each was.
        volume_ids: those of the volumes asked for that one of the guests to be frozen has.
    """

    frozen_ms: int | None = None
    reason: str | None = None
    volume_ids: frozenset[str] = frozenset()
    _is_whole: bool = field(default=False, repr=False)

    def of(self, volume_id: str | None) -> tuple[Consistency, int | None]:
        """What a volume's bytes taken within the block are fit for, and its `frozen_ms`.

        One that none of the guests has was not quiet, whatever the others were.
        """
        if volume_id not in self.volume_ids:
            return Consistency.CRASH, None
        consistency = Consistency.FILESYSTEM if self._is_whole else Consistency.CRASH
        return consistency, self.frozen_ms

    def spoil(self, reason: str) -> None:
        """It was not quiet for all of it."""
        self.reason, self._is_whole = reason, False

    def settle(self, frozen_ms: int, max_ms: float) -> None:
        """It has ended; longer than the deadline, the watchdog may have thawed the guest before."""
        self.frozen_ms = frozen_ms
        if frozen_ms >= max_ms:
            self.reason = f"it was to be frozen for {frozen_ms} ms, longer than max_freeze"
        self._is_whole = self.reason is None
