"""What `thin_ls` writes, as numbers of thin devices. Pure.

Source: thin_ls(8), thin-provisioning-tools 0.9 and 1.x: a number on each line, with `--format DEV`.
"""

from __future__ import annotations

from blockd.domain.errors import StorageError


def parse_thin_id(line: bytes) -> int | None:
    """The number of a device, None for an empty line.

    Raises:
        StorageError: it is not what thin_ls writes.
    """
    word = line.strip()
    if not word:
        return None
    if not word.isdigit():
        raise StorageError(f"thin_ls's output cannot be read: {line[:100]!r}")
    return int(word)
