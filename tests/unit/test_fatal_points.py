"""Where the crash tests die: once in each state of the world that a crash can leave."""

from __future__ import annotations

import pytest

from tests.faults.chain import fatal_points, named

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


def test_power_cut_strikes_after_a_suspension() -> None:
    events = ["before dm suspend", "after dm suspend", "before dm resume", "after dm resume"]
    assert [events[at] for at in fatal_points(events, "power")] == [
        "before dm suspend",
        "after dm resume",
    ]


@pytest.mark.parametrize("how", ["kill", "power"])
def test_question_to_lvm_makes_no_point_wherever_it_comes(how: str) -> None:
    question = ["before lvm lvs", "started lvm lvs", "after lvm lvs"]
    expected = [CREATE[at] for at in fatal_points(CREATE, how)]
    for at in range(len(CREATE) + 1):
        events = [*CREATE[:at], *question, *CREATE[at:]]
        assert [events[point] for point in fatal_points(events, how)] == expected


def test_event_is_named_by_how_many_alike_come_before_it() -> None:
    events = ["before lvm lvcreate", "before dm resume", "before lvm lvcreate"]
    assert [named(events, at) for at in range(3)] == [
        "0 before lvm lvcreate",
        "0 before dm resume",
        "1 before lvm lvcreate",
    ]
