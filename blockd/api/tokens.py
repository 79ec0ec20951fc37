"""Who may use the API over TCP: whoever has one of the tokens in a file of the host's."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path

from blockd.domain.errors import AuthenticationDenied, StartError

#: Long enough not to be guessed: a UUID, as official clients demand, is.
_TOKEN = re.compile(r"[\x21-\x7e]{32,256}")


class Tokens:
    """The tokens, as digests: a comparison tells nothing of how much of a guess was right."""

    def __init__(self, tokens: list[str]) -> None:
        self._digests = frozenset(_digest(token) for token in tokens)

    def check(self, token: str | None) -> None:
        """Let a request pass, or not.

        Raises:
            AuthenticationDenied: there is no token, or it is none of ours.
        """
        if not token:
            raise AuthenticationDenied("invalid_argument")
        if _digest(token) not in self._digests:
            raise AuthenticationDenied("not_found")


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def read_tokens(path: Path) -> Tokens:
    """Read a file with a token on each line; lines that begin with `#` are comments.

    Raises:
        StartError: it cannot be read, others may read it, or a line is no token.
    """
    try:
        with path.open(encoding="ascii") as file:
            mode = os.fstat(file.fileno()).st_mode
            lines = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as err:
        raise StartError(f"{path}: {getattr(err, 'strerror', None) or 'not ASCII'}") from err
    if stat.S_IMODE(mode) & 0o007:
        raise StartError(f"{path} can be read by everybody: chmod 600 {path}")
    tokens = [line for line in lines if line and not line.startswith("#")]
    for number, token in enumerate(tokens, 1):
        if not _TOKEN.fullmatch(token):
            raise StartError(f"{path}: token {number} must have 32 to 256 printable characters")
    if not tokens:
        raise StartError(f"{path}: there is no token in it: uuidgen >>{path}")
    return Tokens(tokens)
