"""What LVM and the pools know is saved before the doctor changes it, or nothing is changed."""

from __future__ import annotations

from pathlib import Path

from blockd.domain.errors import StorageError
from blockd.domain.finding import FindingKind
from blockd.domain.intent import disk_name
from blockd.domain.volume import NewVolume, Volume
from tests.support.service import Running, idle, running

SIZE = 4 * 1024**2


async def left_over(run: Running) -> Volume:
    """A disk of a volume that is in error."""
    run.driver.fail_next["create"] = StorageError("no")
    made = await run.service.volumes.create(NewVolume("e", None, SIZE, 5000, (), None, None))
    await idle(run)
    async with run.driver.turn():
        await run.driver.create(disk_name(made.id), SIZE)
    run.service.doctor._second_look_s = 0.01
    return made


async def test_metadata_are_saved_before_a_disk_is_erased(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        made = await left_over(run)
        (outcome,), after = await run.service.doctor.fix(None)
        assert (outcome.finding.kind, outcome.failure) == (FindingKind.DISK_LEFT, None)
        assert after.findings == ()
        (backup,) = await run.service.backups.listed()
        (text,) = [file.path for file in backup.files if file.kind == "vg"]
        assert disk_name(made.id) in text.read_text()


async def test_nothing_is_changed_when_the_metadata_cannot_be_saved(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        made = await left_over(run)
        run.service.backups._folder._path.write_text("a file where the folder should be")
        (outcome,), after = await run.service.doctor.fix(None)
        assert outcome.failure is not None
        assert "not begun, as there is no backup of the metadata" in outcome.failure
        assert "Not a directory" in outcome.failure or "File exists" in outcome.failure
        assert [finding.kind for finding in after.findings] == [FindingKind.DISK_LEFT]
        assert disk_name(made.id) in await run.driver.disks()
