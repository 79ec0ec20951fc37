"""Notes, a line of JSON each, that outlive the guest that writes them: on the host at once."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any


class Notes:
    """A file to add to, from any thread."""

    def __init__(self, path: Path) -> None:
        self._file, self._lock = path.open("a+", encoding="utf-8"), threading.Lock()
        if self._file.tell():
            self._file.write("\n")  # the last line may be torn: the guest's power was cut

    def close(self) -> None:
        """No more is added."""
        self._file.close()

    def add(self, **fields: object) -> None:
        """One line; it is on the host when this returns."""
        with self._lock:
            self._file.write(json.dumps(fields) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())


def read_notes(path: Path) -> list[dict[str, Any]]:
    """All whole lines; none where there is no file."""
    notes = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            notes.append(json.loads(line))
        except ValueError:
            continue
    return notes
