"""Comparing the uploads that object storage has with those that the journal knows."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

from blockd.catalog import Catalog
from blockd.domain.errors import BucketUnfit, ObjectStoreError
from blockd.domain.finding import Finding, FindingKind
from blockd.domain.job import Job
from blockd.domain.transfer import Upload
from blockd.service.ports import Images

#: What others upload takes some time; what takes longer is likely to be forgotten.
_STRANGE_AFTER = timedelta(days=1)


class UploadExamination:
    """The buckets that jobs of ours have named, as long as their records are kept."""

    def __init__(self, catalog: Catalog, images: Images) -> None:
        self._catalog, self._images = catalog, images

    async def find(self) -> list[Finding]:
        """Asks the server for each bucket; what it does not tell is a finding, too."""
        jobs = await self._catalog.read(lambda tx: tx.jobs.with_uploads())
        findings: list[Finding] = []
        for bucket in sorted({job.bucket for job in jobs if job.bucket is not None}):
            try:
                uploads = await self._images.uploads(bucket)
            except BucketUnfit:
                continue  # gone, with all that was in it; or an export says what is wrong
            except ObjectStoreError as err:
                findings.append(
                    Finding(
                        FindingKind.NOT_EXAMINED,
                        f"uploads/{bucket}",
                        f"uploads to bucket {bucket} are not known: {err}",
                        advice="see that object storage answers, and ask again",
                    )
                )
                continue
            of_bucket = [job for job in jobs if job.bucket == bucket]
            findings += _compared(bucket, uploads, of_bucket, datetime.now(UTC))
        return findings

    async def mend(self, finding: Finding) -> None:
        """End an upload that the journal proves ours, if it still does."""
        jobs = await self._catalog.read(lambda tx: tx.jobs.with_uploads())
        for job in jobs:
            upload_id = str(job.args.get("upload_id"))
            if not job.phase and finding.subject == _subject(job.bucket, job.key, upload_id):
                await self._images.abort(str(job.bucket), str(job.key), upload_id)


def _compared(
    bucket: str, uploads: Sequence[Upload], jobs: Sequence[Job], now: datetime
) -> Iterator[Finding]:
    in_hand = {job.key for job in jobs if job.phase}
    ended = {job.args.get("upload_id"): job for job in jobs if not job.phase}
    for upload in uploads:
        subject = _subject(bucket, upload.key, upload.upload_id)
        where = f"an upload to s3://{bucket}/{upload.key}, begun {upload.initiated_at},"
        if job := ended.get(upload.upload_id):
            yield Finding(
                FindingKind.UPLOAD_LEFT,
                subject,
                f"{where} is left of export job {job.id}, which has ended, and takes room",
                fix="end it",
            )
        elif upload.key not in in_hand and _is_strange(upload, now):
            # A key is anybody's text, and somebody copies this line into a shell.
            names = ("--bucket", bucket, "--key", upload.key, "--upload-id", upload.upload_id)
            yield Finding(
                FindingKind.UPLOAD_UNKNOWN,
                subject,
                f"{where} is of no job in the catalog, and takes room",
                advice="if nobody else uploads there: "
                f"aws s3api abort-multipart-upload {shlex.join(names)}",
            )


def _is_strange(upload: Upload, now: datetime) -> bool:
    try:
        return now - datetime.fromisoformat(upload.initiated_at) > _STRANGE_AFTER
    except (ValueError, TypeError):  # no instant, or one without its zone
        return True


def _subject(bucket: str | None, key: str | None, upload_id: str) -> str:
    return f"{bucket}/{key}/{upload_id}"
