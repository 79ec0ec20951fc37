"""Examines whether catalog, journal, storage and object storage say the same, and puts right what
can be put right without taking anything away.

What it finds it has seen twice, with a pause, so that nothing was caught between two steps of an
operation. What it fixes it has seen once more, within the class's turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

import structlog

from blockd.catalog import Catalog
from blockd.domain.errors import BackupFailed, BlockdError, NotFound, StorageError, WrongState
from blockd.domain.finding import Finding, FindingKind, Fixed
from blockd.domain.units import now_timestamp
from blockd.service.backups import Backups
from blockd.service.classes import StorageClass, StorageClasses
from blockd.service.comparison import compare, expectation
from blockd.service.disk_fixes import DiskFixes
from blockd.service.jobs import Jobs
from blockd.service.operations import Operations
from blockd.service.ports import Images
from blockd.service.upload_examination import UploadExamination

log = structlog.get_logger()

_TURN_S = 60.0
_AGAIN_S = 60.0
_SECOND_LOOK_S = 1.0

#: In this order: a front is removed before the disk beneath it is entered into the catalog.
_ORDER = list(FindingKind)

#: Fixing these changes what LVM or a pool knows, so that is saved first.
_CHANGES_METADATA = frozenset(
    {
        FindingKind.DISK_UNKNOWN,
        FindingKind.DISK_LEFT,
        FindingKind.THIN_DEVICE_UNKNOWN,
        FindingKind.CREATION_CUT_SHORT,
    }
)


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found, and when."""

    examined_at: str
    findings: tuple[Finding, ...]


class Doctor:
    """One examination, or one fix, at a time."""

    def __init__(
        self,
        catalog: Catalog,
        classes: StorageClasses,
        images: Images,
        operations: Operations,
        jobs: Jobs,
        backups: Backups,
        project_id: str,
        *,
        second_look_s: float = _SECOND_LOOK_S,
    ) -> None:
        """`project_id`: whose the snapshots are that disks unknown to the catalog become."""
        self._catalog, self._classes = catalog, classes
        self._operations, self._jobs, self._backups = operations, jobs, backups
        self._uploads = UploadExamination(catalog, images)
        self._disks = DiskFixes(catalog, operations, project_id)
        self._second_look_s = second_look_s
        self._one_at_a_time = asyncio.Lock()
        self.last: Examination | None = None

    async def run(self) -> None:
        """At start: examine once, for the log and the health; the daemon owns this."""
        try:
            examination = await self.examine()
        except Exception:
            log.exception("the host could not be examined")
            return
        for finding in examination.findings:
            log.warning("found at start", finding=finding.id, explanation=finding.explanation)
        log.info("examined", findings=len(examination.findings))

    async def examine(self) -> Examination:
        """Look, and change nothing."""
        async with self._one_at_a_time:
            return await self._examine()

    async def fix(self, ids: Sequence[str] | None) -> tuple[list[Fixed], Examination]:
        """Put right what was found, and look again.

        Args:
            ids: of findings; None: all that can be put right.

        Raises:
            NotFound: there is no such finding (any more); nothing was done.
            WrongState: that one cannot be put right by us; nothing was done.
        """
        async with self._one_at_a_time:
            found = {finding.id: finding for finding in (await self._examine()).findings}
            if ids is None:
                wanted = [one for one in found.values() if one.fix]
            else:
                wanted = [_fixable(found, finding_id) for finding_id in dict.fromkeys(ids)]
            wanted.sort(key=lambda finding: _ORDER.index(finding.kind))
            unsaved = await self._back_up(wanted)
            outcomes = [
                Fixed(finding, unsaved[finding.storage_class])
                if finding.kind in _CHANGES_METADATA and finding.storage_class in unsaved
                else await self._fix(finding)
                for finding in wanted
            ]
            return outcomes, await self._examine()

    async def _back_up(self, wanted: Sequence[Finding]) -> dict[str | None, str]:
        """Save what LVM and the pools know before it is changed.

        Returns:
            Of which class it could not be, and why: there nothing is begun.
        """
        unsaved: dict[str | None, str] = {}
        changing = [one.storage_class for one in wanted if one.kind in _CHANGES_METADATA]
        for name in sorted({name for name in changing if name is not None}):
            try:
                async with asyncio.timeout(_TURN_S):
                    missing = await self._backups.before_repair(name)
            except (BackupFailed, TimeoutError) as err:
                why = str(err) or f"its turn did not come within {_TURN_S:g} s"
                unsaved[name] = f"not begun, as there is no backup of the metadata: {why}"
            else:
                if missing is not None:
                    log.warning("fixing without a whole backup", reason=missing)
        return unsaved

    async def _examine(self) -> Examination:
        findings = await self._look()
        if findings:
            await asyncio.sleep(self._second_look_s)
            again = {finding.id for finding in await self._look()}
            findings = [finding for finding in findings if finding.id in again]
        findings.sort(key=lambda finding: (_ORDER.index(finding.kind), finding.id))
        self.last = Examination(now_timestamp(), tuple(findings))
        return self.last

    async def _look(self) -> list[Finding]:
        findings = {finding.id: finding for finding in await self._journal()}
        for storage_class in self._classes:
            try:
                async with asyncio.timeout(_TURN_S):
                    of_class = await self._class(storage_class)
            except (StorageError, TimeoutError) as err:
                of_class = [_not_examined(storage_class, err)]
            findings |= {finding.id: finding for finding in of_class}
        findings |= {finding.id: finding for finding in await self._uploads.find()}
        return list(findings.values())

    async def _journal(self) -> list[Finding]:
        intents = await self._catalog.read(lambda tx: tx.intents())
        problems = self._operations.retries.problems
        findings = [
            Finding(
                FindingKind.OPERATION_STUCK,
                str(intent.id),
                problems.get(intent.id)
                or f"{intent.verb} {intent.resource_id}: nobody carries it out",
                fix="try it again now",
                advice="the reason says what is in its way",
            )
            for intent in intents
            if intent.id in problems or not self._operations.carries_out(intent)
        ]
        for job_id, problem in self._jobs.retries.problems.items():
            findings.append(
                Finding(
                    FindingKind.JOB_STUCK,
                    job_id,
                    problem,
                    fix="try it again now",
                    advice="the reason says what is in its way",
                )
            )
        return findings

    async def _class(self, storage_class: StorageClass) -> list[Finding]:
        driver = storage_class.driver
        async with driver.turn():
            found, ailments = await driver.examine()
            expected = await self._catalog.read(lambda tx: expectation(storage_class, tx))
        findings = [*compare(expected, found, is_thick=storage_class.is_thick), *ailments]
        return [_of_class(finding, storage_class) for finding in findings]

    async def _fix(self, finding: Finding) -> Fixed:
        log.warning("fixing", finding=finding.id, fix=finding.fix)
        try:
            async with asyncio.timeout(_AGAIN_S):
                failure = await self._carry_out(finding)
        except TimeoutError:
            failure = f"it takes longer than {_AGAIN_S:g} s: ask again"
        except (BlockdError, OSError) as err:
            failure = str(err)
        if failure is not None:
            log.error("not fixed", finding=finding.id, reason=failure)
        return Fixed(finding, failure)

    async def _carry_out(self, finding: Finding) -> str | None:
        """Why it is not done, None when it is."""
        match finding.kind:
            case FindingKind.OPERATION_STUCK:
                return await self._again(int(finding.subject))
            case FindingKind.JOB_STUCK:
                return await self._jobs.retries.again(finding.subject, _AGAIN_S)
            case FindingKind.UPLOAD_LEFT:
                await self._uploads.mend(finding)
                return None
        for storage_class in self._classes:
            # A link is of no class: whoever is first sees to it.
            if finding.storage_class in (storage_class.name, None):
                async with storage_class.driver.turn():
                    await self._mend(storage_class, finding)
                return None
        return "there is no such class any more"

    async def _mend(self, storage_class: StorageClass, finding: Finding) -> None:
        driver = storage_class.driver
        match finding.kind:
            case FindingKind.DISK_UNKNOWN:
                await self._disks.adopt(storage_class, finding.subject)
            case FindingKind.DISK_LEFT:
                await self._disks.erase_left(storage_class, finding.subject)
            case FindingKind.FRONT_MISSING | FindingKind.FRONT_WRONG:
                expected = await self._catalog.read(lambda tx: expectation(storage_class, tx))
                if front := expected.fronts.get(finding.subject):
                    await driver.connect(front)
            case FindingKind.FRONT_UNKNOWN:
                expected = await self._catalog.read(lambda tx: expectation(storage_class, tx))
                if finding.subject in expected.fronts.keys() | expected.moving:
                    return
                if await self._catalog.read(lambda tx: tx.snapshot(finding.subject)):
                    await driver.hide(finding.subject)
                else:
                    await driver.disconnect(finding.subject)
            case _:
                await driver.mend(finding)

    async def _again(self, intent_id: int) -> str | None:
        intent = await self._catalog.read(lambda tx: tx.intent(intent_id))
        if intent is None:
            return None
        if not self._operations.carries_out(intent):
            self._operations.submit(intent)
            return None
        return await self._operations.retries.again(intent_id, _AGAIN_S)


def _fixable(found: dict[str, Finding], finding_id: str) -> Finding:
    finding = found.get(finding_id)
    if finding is None:
        raise NotFound("finding", finding_id)
    if finding.fix is None:
        raise WrongState("finding", finding_id, "for a person", "fix")
    return finding


def _of_class(finding: Finding, storage_class: StorageClass) -> Finding:
    if finding.kind is FindingKind.LINK_WRONG:
        return finding  # all classes share the folder
    return replace(finding, storage_class=storage_class.name)


def _not_examined(storage_class: StorageClass, err: Exception) -> Finding:
    reason = str(err) or "what is under way with it does not end"
    return Finding(
        FindingKind.NOT_EXAMINED,
        "disks",
        f"class {storage_class.name} could not be examined: {reason}",
        advice="see blockctl health, and ask again",
        storage_class=storage_class.name,
    )
