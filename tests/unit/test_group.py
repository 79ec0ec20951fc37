"""Who may use the socket."""

from __future__ import annotations

import grp
import os
import pwd

import pytest

from blockd.host.group import Group

NOBODY = pwd.getpwnam("nobody").pw_uid


def test_root_and_own_user_are_admitted_without_any_group() -> None:
    group = Group("no-such-group")
    assert group.gid is None
    assert group.admits(0, 0)
    assert group.admits(os.geteuid(), 4711)
    assert not group.admits(NOBODY, 65534) or os.geteuid() == NOBODY


def test_members_are_admitted_by_primary_and_by_further_groups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = grp.getgrall()[3]
    group = Group(known.gr_name)
    asked: list[str] = []

    def groups_of(name: str, gid: int) -> list[int]:
        asked.append(name)
        return [gid, known.gr_gid] if name == "nobody" else [gid]

    monkeypatch.setattr(os, "getgrouplist", groups_of)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert group.admits(4242, known.gr_gid)
    assert group.admits(NOBODY, 4711)
    assert group.admits(NOBODY, 4711)
    assert asked == ["nobody"]  # the second time it was remembered
    assert not group.admits(424242, 424242)
