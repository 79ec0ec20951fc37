"""The last 512 bytes of every object that blockd writes: what is in it, and its digest.

The digest is known only when all is sent, and an object's metadata only before; a trailer is also
copied by every tool. It lies behind the last cluster, where QCOW2 readers do not look.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Final

TRAILER_BYTES: Final = 512
_MAGIC: Final = b"blockd image 1\n"
_SUM_BYTES: Final = 32
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Trailer:
    """What an object says of itself.

    Attributes:
        content_digest: see `digest.py`.
        size_bytes: the size of the snapshot.
        object_bytes: the whole object's, this trailer included: a trailer elsewhere is none.
    """

    content_digest: str
    snapshot_id: str
    job_id: str
    size_bytes: int
    object_bytes: int


def write_trailer(trailer: Trailer) -> bytes:
    """512 bytes: magic, JSON, zeros, and the SHA-256 of what comes before it."""
    text = _MAGIC + json.dumps(asdict(trailer)).encode("ascii")
    body = text.ljust(TRAILER_BYTES - _SUM_BYTES, b"\0")
    return body + hashlib.sha256(body).digest()


def read_trailer(tail: bytes, object_bytes: int) -> Trailer | None:
    """The trailer in the last 512 bytes of an object of `object_bytes`; None for anything else."""
    body, checksum = tail[:-_SUM_BYTES], tail[-_SUM_BYTES:]
    if len(tail) != TRAILER_BYTES or not body.startswith(_MAGIC):
        return None
    if hashlib.sha256(body).digest() != checksum:
        return None
    try:
        trailer = Trailer(**json.loads(body[len(_MAGIC) :].rstrip(b"\0")))
    except (ValueError, TypeError):
        return None
    is_ours = isinstance(trailer.content_digest, str) and _DIGEST.fullmatch(trailer.content_digest)
    return trailer if is_ours and trailer.object_bytes == object_bytes else None
