"""Memory through which bytes pass: whole pages, as direct reads and writes want them."""

from __future__ import annotations

import mmap
from contextlib import suppress


def pages(length_bytes: int) -> mmap.mmap:
    """So much of it, all zeros, of this process alone.

    In huge pages where the kernel has them: 16 MiB are 4,096 faults else, 12 ms (measured).
    Private: what is advised away of shared memory comes back as it was, not as zeros; and not for
    children, as a direct read into private memory must not meet a fork.
    Source: madvise(2), MADV_HUGEPAGE, MADV_DONTFORK; open(2), O_DIRECT.
    """
    fresh = mmap.mmap(-1, length_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    fresh.madvise(mmap.MADV_DONTFORK)
    with suppress(OSError):  # a kernel without
        fresh.madvise(mmap.MADV_HUGEPAGE)
    return fresh
