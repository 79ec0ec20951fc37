"""Secrets that are given to the daemon: by systemd, in a file, or in the environment.

Source: systemd, CREDENTIALS.md: `$CREDENTIALS_DIRECTORY/NAME`, readable by the service alone.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from blockd.domain.errors import StartError

_CREDENTIAL = "object_storage"


def object_storage_keys(file: Path | None) -> tuple[str, str]:
    """Access key and secret key.

    Args:
        file: what the configuration names; goes before all others.

    Raises:
        StartError: there are none, or the file is readable by others, or is not as it should be.
    """
    credential = Path(os.environ.get("CREDENTIALS_DIRECTORY", "")) / _CREDENTIAL
    if file is None and "CREDENTIALS_DIRECTORY" in os.environ and credential.exists():
        file = credential
    if file is not None:
        return _from_file(file)
    keys = os.environ.get("BLOCKD_S3_ACCESS_KEY", ""), os.environ.get("BLOCKD_S3_SECRET_KEY", "")
    if not all(keys):
        raise StartError(
            "object_storage: no credentials: set object_storage.credentials, give the systemd "
            "credential object_storage, or set BLOCKD_S3_ACCESS_KEY and BLOCKD_S3_SECRET_KEY"
        )
    return keys


def _from_file(file: Path) -> tuple[str, str]:
    try:
        if file.stat().st_mode & 0o077:
            raise StartError(f"{file}: others can read it: chmod 600")
        document = tomllib.loads(file.read_text("utf-8"))
    except OSError as err:
        raise StartError(f"{file}: {err.strerror}") from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise StartError(f"{file}: is no TOML with access_key and secret_key") from None
    keys = document.get("access_key"), document.get("secret_key")
    if not all(isinstance(key, str) and key for key in keys):
        raise StartError(f'{file}: needs the lines access_key = "…" and secret_key = "…"')
    return str(keys[0]), str(keys[1])
