"""What is told of a qemu-img that failed."""

from __future__ import annotations

import pytest

from blockd.transfer.qemu_img import _complaint

PROBING = "Failed to open /dev/null for OFD lock probing: No such file or directory\n"


@pytest.mark.parametrize(
    ("returncode", "said", "told"),
    [
        (-9, "", "it was ended by signal 9"),
        (-9, PROBING, "it was ended by signal 9"),
        (-6, "qemu-img: block.c:7: failed\n", "it was ended by signal 6, after: block.c:7: failed"),
        (1, PROBING, "it ended with status 1"),
        (1, f"{PROBING}qemu-img: Could not open 'x': not qcow2\n\n", "not qcow2"),
    ],
)
def test_complaint_names_the_cause_and_no_noise(returncode: int, said: str, told: str) -> None:
    assert _complaint(returncode, said.encode()) == f"qemu-img: {told}"
