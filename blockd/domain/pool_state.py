"""How a pool does: its use, what is wrong with it, whether it can grow, when it will be full."""

from __future__ import annotations

from dataclasses import dataclass

from blockd.domain.pool import PoolUse
from blockd.domain.pool_trouble import PAGE, trouble_line


@dataclass(frozen=True, slots=True)
class PoolState:
    """What there is to know of a class's pool.

    Attributes:
        obstacle: why the next extension would not work; empty: it would.
        addable_bytes: of data, in all extensions to come.
        is_stuck: it would have to be extended now, and cannot be.
        fill_bytes_s: at which its data filled during the last ten minutes, negative when they
            emptied; None: not known yet.
        full_in_s: until the data are full at that rate, all extensions to come included; None:
            they do not fill.
        metadata_full_in_s: until the metadata are, without extensions.
    """

    use: PoolUse
    obstacle: str
    addable_bytes: int
    is_stuck: bool
    fill_bytes_s: float | None
    full_in_s: float | None
    metadata_full_in_s: float | None

    @property
    def problems(self) -> list[str]:
        """A line for each thing that somebody should do something about."""
        lines = []
        if (trouble := self.use.trouble) is not None:
            lines.append(trouble_line(self.use))
        if self.is_stuck and (trouble is None or trouble.passes_with_room):
            lines.append(
                f"pool {self.use.name} is above its low-water mark and cannot be extended "
                f"({self.obstacle}): extend the volume group, or delete volumes or snapshots "
                f"({PAGE})"
            )
        return lines
