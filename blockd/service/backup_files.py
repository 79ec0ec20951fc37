"""The folder of backups: files that are there whole or not at all, and a bounded number of them.

`CLASS.NUMBER.TIME.KIND`, e.g. `sbs.000042.20261126T174500Z.vg`. The number orders them, as a clock
that jumps would not; a name sorts by it.
"""

from __future__ import annotations

import errno
import gzip
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

from blockd.domain.backup import THIN_METADATA, Backup, BackupFile
from blockd.domain.effects import SideEffects
from blockd.domain.units import MIB, format_timestamp

_NAME: Final = re.compile(
    r"([a-z][a-z0-9_]{0,15})\.([0-9]{6,15})\.([0-9]{8}T[0-9]{6}Z)\.(vg|thin\.xml\.gz)"
)
_TIME: Final = "%Y%m%dT%H%M%SZ"

#: The catalog lies on the same filesystem as a rule, and is dearer than its backups.
_SPARED_SHARE: Final = 20
_SPARED_BYTES: Final = 256 * MIB


class BackupFolder:
    """The backups of all classes. All methods block; errors are OSErrors."""

    def __init__(self, path: Path, keep: int, effects: SideEffects) -> None:
        self._path, self._keep, self._effects = path, keep, effects

    def backups(self, storage_class: str) -> list[Backup]:
        """Those of a class, the newest first. Files that are not ours are passed over."""
        found: dict[tuple[int, str], list[BackupFile]] = {}
        try:
            entries = sorted(os.scandir(self._path), key=lambda entry: entry.name, reverse=True)
        except FileNotFoundError:
            return []
        for entry in entries:
            match = _NAME.fullmatch(entry.name)
            if match is None or match[1] != storage_class:
                continue
            taken_at = _taken_at(match[3])
            if taken_at is not None and entry.is_file(follow_symlinks=False):
                size_bytes = entry.stat(follow_symlinks=False).st_size
                file = BackupFile(match[4], self._path / entry.name, size_bytes)
                found.setdefault((int(match[2]), taken_at), []).append(file)
        return [
            Backup(storage_class, number, taken_at, tuple(files))
            for (number, taken_at), files in sorted(found.items(), reverse=True)
        ]

    def begin(self, storage_class: str) -> str:
        """The first two words of the next backup's files; makes the folder, and tidies it up."""
        self._path.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in self._path.glob(f".{storage_class}.*.new"):  # of a daemon that was killed
            left.unlink(missing_ok=True)
        numbers = [backup.number for backup in self.backups(storage_class)]
        return f"{storage_class}.{max(numbers, default=0) + 1:06}.{datetime.now(UTC):{_TIME}}"

    def fresh(self, stem: str, kind: str) -> FreshFile:
        """A file to be written."""
        return FreshFile(self._path, f"{stem}.{kind}", self._effects)

    def prune(self, storage_class: str, kinds: Iterable[str]) -> None:
        """Remove the oldest: the newest `keep` stay, and the newest `keep` that have all `kinds`.

        So that a pool that is broken for long does not push out what could repair it.
        """
        backups, wanted = self.backups(storage_class), frozenset(kinds)
        whole = [backup for backup in backups if backup.kinds >= wanted]
        stay = {backup.number for backup in backups[: self._keep] + whole[: self._keep]}
        old = [backup for backup in backups if backup.number not in stay]
        for backup in old:
            for file in backup.files:
                with self._effects.around("backup remove"):
                    file.path.unlink(missing_ok=True)
        if old:
            _sync_folder(self._path)


class FreshFile:
    """A file under a name of its own until `keep`; packed where its kind says so."""

    def __init__(self, folder: Path, name: str, effects: SideEffects) -> None:
        self._folder, self._path, self._effects = folder, folder / name, effects
        self._fresh = folder / f".{name}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        self._file: IO[bytes] = os.fdopen(os.open(self._fresh, flags, 0o600), "wb")
        self._to: IO[bytes] | gzip.GzipFile = self._file
        if name.endswith(THIN_METADATA):
            self._to = gzip.GzipFile("", "wb", 6, self._file)

    def write(self, piece: bytes) -> None:
        """Append.

        Raises:
            OSError: ENOSPC also where too little would be left to others.
        """
        space = os.statvfs(self._folder)
        spared = min(space.f_blocks * space.f_frsize // _SPARED_SHARE, _SPARED_BYTES)
        if space.f_bavail * space.f_frsize - len(piece) < spared:
            raise OSError(errno.ENOSPC, f"{spared} bytes are left free for others")
        self._to.write(piece)

    def keep(self) -> None:
        """All was written: it is on the disk under its name when this returns."""
        if self._to is not self._file:
            self._to.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        with self._effects.around("backup rename"):
            self._fresh.rename(self._path)
        _sync_folder(self._folder)

    def drop(self) -> None:
        """Leave nothing; no-op after `keep`."""
        with suppress(OSError):  # flushing what the disk has no room for
            self._file.close()
        self._fresh.unlink(missing_ok=True)


def number_of(stem: str) -> int:
    """The number in what `BackupFolder.begin` answers."""
    return int(stem.split(".")[1])


def _taken_at(text: str) -> str | None:
    try:
        return format_timestamp(datetime.strptime(text, _TIME).replace(tzinfo=UTC))
    except ValueError:
        return None


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
