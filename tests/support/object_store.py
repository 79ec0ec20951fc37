"""A real S3 server for tests: `rclone serve s3` over a folder, with keys of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from minio import Minio
from minio.error import MinioException

from blockd.config import ObjectStorageSection, TransfersSection
from blockd.domain.units import MIB

BUCKET = "backups"
ACCESS_KEY, SECRET_KEY = "testaccesskey", "testsecretkey"
_START_S = 20.0


@dataclass(frozen=True)
class Server:
    """A server that runs; objects are files below `folder / bucket`."""

    port: int
    folder: Path
    credentials: Path
    pid: int

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def section(self) -> ObjectStorageSection:
        """The configuration of a daemon that uses it."""
        return ObjectStorageSection(endpoint=self.url, credentials=self.credentials)

    def uploads(self) -> list[str]:
        """Keys of all uploads that were begun and not ended, by another client."""
        return [key for key, _ in self._uploads()]

    def abort_uploads(self) -> None:
        """End all of them, behind everybody's back."""
        for key, upload_id in self._uploads():
            self._client._abort_multipart_upload(BUCKET, key, upload_id)

    @property
    def _client(self) -> Minio:
        return Minio(
            f"127.0.0.1:{self.port}", ACCESS_KEY, SECRET_KEY, secure=False, region="us-east-1"
        )

    def _uploads(self) -> list[tuple[str, str]]:
        # Not by minio's own method: it sends an empty delimiter, and then rclone lists nothing.
        try:
            answer = self._client._execute("GET", BUCKET, query_params={"uploads": ""})
        except MinioException as err:
            if "NoSuchUpload" in str(err):  # what rclone says when there never was one
                return []
            raise
        listed = ElementTree.fromstring(answer.data)
        return [
            (str(upload.findtext("{*}Key")), str(upload.findtext("{*}UploadId")))
            for upload in listed.iterfind("{*}Upload")
        ]

    def object(self, key: str) -> Path:
        """The file that is the object."""
        return self.folder / BUCKET / key


def quick_transfers(**options: object) -> TransfersSection:
    """Small parts and little patience."""
    return TransfersSection.model_validate({"part_size": 5 * MIB, "patience": 3.0, **options})


@contextmanager
def object_store(root: Path, *, looks_again: bool = False) -> Iterator[Server]:
    """A server with the bucket `BUCKET`, gone with the block.

    Args:
        looks_again: within moments, so that objects which a test puts there itself are seen; but
            the MD5 of the whole object, its ETag, is then made each time.
    """
    folder = root / "objects"
    (folder / BUCKET).mkdir(parents=True, exist_ok=True)
    credentials = root / "object_storage.toml"
    credentials.write_text(f'access_key = "{ACCESS_KEY}"\nsecret_key = "{SECRET_KEY}"\n')
    credentials.chmod(0o600)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (root / "rclone.log").open("wb")
    process = subprocess.Popen(
        [
            str(Path(sys.executable).parent / "rclone"),
            *("serve", "s3", str(folder), "--config=", f"--cache-dir={root}/rclone-cache"),
            f"--auth-key={ACCESS_KEY},{SECRET_KEY}",
            f"--addr=127.0.0.1:{port}",
            # Not 0: then rclone's timer for each folder fires without a pause, and after a while
            # thousands of goroutines wait for one lock and no request is answered any more.
            *(("--dir-cache-time=5ms",) if looks_again else ()),
            # Keys differ in case only by accident, and parts may come in any order.
            "--multipart-streaming-buffer-limit=0",
            "--multipart-streaming-buffer-total=0",
        ],
        stdout=log,
        stderr=log,
        # Go interrupts its own threads with signals, which user-mode-linux is slow at.
        env={"PATH": os.environ["PATH"], "HOME": str(root), "GODEBUG": "asyncpreemptoff=1"},
    )
    try:
        _wait_for(port, process)
        yield Server(port, folder, credentials, process.pid)
    finally:
        process.kill()
        process.wait(10)
        log.close()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert process.poll() is None, "rclone ended"
            assert time.monotonic() < deadline, "rclone does not listen"
            time.sleep(0.02)
        else:
            return
