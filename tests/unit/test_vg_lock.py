"""One daemon for each volume group."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockd.domain.errors import StartError
from blockd.host import vg_lock as module
from blockd.host.vg_lock import vg_lock


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    locks = tmp_path / "blockd"
    monkeypatch.setattr(module, "LOCK_DIRECTORY", locks)
    return locks


def test_second_holder_is_refused_with_the_pid_of_the_first() -> None:
    with (
        vg_lock("vg"),
        pytest.raises(StartError, match=r"another blockd \(pid \d+\): stop it first"),
        vg_lock("vg"),
    ):
        pass


def test_lock_is_free_again_and_other_groups_are_not_held() -> None:
    with vg_lock("vg"), vg_lock("other"):
        pass
    with vg_lock("vg"):
        pass


def test_error_of_the_holder_is_not_taken_for_the_lock(folder: Path) -> None:
    with pytest.raises(BlockingIOError), vg_lock("vg"):
        raise BlockingIOError
    assert folder.stat().st_mode & 0o077 == 0


def test_folder_that_others_may_write_to_is_refused(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(StartError, match="belongs to somebody else"), vg_lock("vg"):
        pass


def test_link_to_another_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StartError, match="cannot lock volume group vg"), vg_lock("vg"):
        pass
