"""Where the crash tests die: once in each state of the world that a crash can leave."""

from __future__ import annotations

from tests.faults.chain import fatal_points

#: As a daemon has recorded a create.
CREATE = [
    *("before commit volume creating", "after commit volume creating"),
    *("before lvm lvcreate", "started lvm lvcreate", "after lvm lvcreate"),
    *("before dm create", "after dm create", "before dm resume", "after dm resume"),
    *("before commit volume created", "after commit volume created"),
]


def test_kill_strikes_between_all_that_the_kernel_and_the_disks_keep() -> None:
    assert [CREATE[at] for at in fatal_points(CREATE, "kill")] == [
        *("before commit volume creating", "after commit volume creating"),
        *("before lvm lvcreate", "started lvm lvcreate"),
        *("before dm create", "before dm resume"),
        *("before commit volume created", "after commit volume created"),
    ]


def test_power_cut_strikes_once_for_each_state_of_the_disks() -> None:
    assert [CREATE[at] for at in fatal_points(CREATE, "power")] == [
        *("before commit volume creating", "before lvm lvcreate", "started lvm lvcreate"),
        *("before commit volume created", "after commit volume created"),
    ]


def test_power_cut_strikes_after_a_suspension_but_not_around_a_read() -> None:
    events = [
        *("before lvm lvs", "started lvm lvs", "after lvm lvs"),
        *("before dm suspend", "after dm suspend", "before dm resume", "after dm resume"),
    ]
    assert [events[at] for at in fatal_points(events, "power")] == [
        "before dm suspend",
        "after dm resume",
    ]
