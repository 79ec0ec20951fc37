"""What to tell people of a pool's trouble: what it means, and what to do, in one line."""

from __future__ import annotations

from typing import Final

from blockd.domain.pool import PoolTrouble, PoolUse

#: Where each trouble has a section, with the commands that end it.
PAGE: Final = "docs/pool-trouble.md"


def trouble_line(use: PoolUse) -> str:
    """The line; of a pool without trouble, that it has none."""
    name, trouble = f"pool {use.name}", use.trouble
    if trouble is None:
        return f"{name} is well"
    see = f"({PAGE}#{trouble.replace('_', '-')})"
    match trouble:
        case PoolTrouble.OUT_OF_DATA_SPACE:
            return f"{name} is full: {_when_full(use)}; it goes on when there is room {see}"
        case PoolTrouble.OUT_OF_METADATA_SPACE:
            return (
                f"{name} is full: no metadata are left, it takes no writes until they are "
                f"extended {see}"
            )
        case PoolTrouble.TRANSACTION_ID:
            kernel, lvm = use.transaction_ids or (0, 0)
            what = (
                f"the kernel has transaction id {kernel}, LVM expects {lvm}: nothing can be "
                "created or removed"
            )
        case PoolTrouble.INACTIVE:
            why = f" ({use.fault})" if use.fault else ""
            what = f"is not active{why}, its volumes cannot be used"
        case PoolTrouble.FAILED:
            what = "was given up by the kernel, it takes no writes"
        case PoolTrouble.NEEDS_CHECK:
            what = "takes no writes, its metadata need a check"
        case PoolTrouble.READ_ONLY:
            what = "is read-only, it takes no writes"
    how = "repair it with `blockctl pool repair`" if trouble.is_repairable else "repair it"
    return f"{name} {what}: {how} {see}"


def _when_full(use: PoolUse) -> str:
    return "writes fail" if use.when_full == "error" else "writes wait, and fail after a minute"
