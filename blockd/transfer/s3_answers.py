"""What an S3 server's answers say. Pure; the server is not trusted.

Source: Amazon S3 API reference, error responses; MinIO and rclone's own codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree

from blockd.domain.errors import (
    BucketUnfit,
    ObjectChanged,
    ObjectMissing,
    ObjectStoreError,
    UploadGone,
)
from blockd.domain.transfer import Upload
from blockd.transfer.s3_retry import Transient

_TRANSIENT_CODES: Final = frozenset(
    {"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "OperationAborted"}
)
_CREDENTIAL_CODES: Final = frozenset(
    {
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "InvalidToken",
        "ExpiredToken",
        "InvalidAccessKey",
    }
)
_REGION_CODES: Final = frozenset(
    {"AuthorizationHeaderMalformed", "PermanentRedirect", "TemporaryRedirect", "InvalidRegion"}
)
_LONGEST_WORD: Final = 200


@dataclass(frozen=True, slots=True)
class Fault:
    """An answer that is no success. `code` is S3's word, empty when there is no body."""

    status: int
    code: str
    message: str
    region: str
    retry_after_s: float = 0.0

    @property
    def is_transient(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in (429, 500, 502, 503, 504) or self.code in _TRANSIENT_CODES


@dataclass(frozen=True, slots=True)
class Part:
    """A part that the server has; its ETag is the MD5 of its bytes, on servers without KMS."""

    number: int
    size_bytes: int
    etag: str


def parse_document(body: bytes) -> ElementTree.Element:
    """The root of an XML answer.

    Raises:
        Transient: it is none (a proxy's page, say), or has a DTD, which no S3 answer has.
    """
    if b"<!DOCTYPE" in body or b"<!ENTITY" in body:
        raise Transient("the answer is not of an S3 server")
    try:
        return ElementTree.fromstring(body)  # noqa: S314 - no DTD, and bounded in size
    except ElementTree.ParseError as err:
        raise Transient("the answer is not of an S3 server") from err


def fault_of(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> Fault:
    """What an answer with this status complains of."""
    code = message = region = ""
    try:
        document = parse_document(body)
        code = _word(document.findtext("{*}Code"))
        message = _word(document.findtext("{*}Message"))
        region = _word(document.findtext("{*}Region"))
    except Transient:
        pass
    headers = headers or {}
    after = headers.get("Retry-After", "")
    return Fault(
        status,
        code,
        message,
        region or _word(headers.get("x-amz-bucket-region")),
        float(after) if after.isdecimal() else 0.0,
    )


def refusal(  # noqa: PLR0911 - one for each of S3's reasons
    fault: Fault, bucket: str, key: str
) -> ObjectStoreError:
    """The error that a fault is, with the next step."""
    if fault.status == 404 and fault.code not in ("NoSuchBucket", "NoSuchUpload"):
        return ObjectMissing(bucket, key)
    match fault.code:
        case "NoSuchBucket":
            return BucketUnfit(f"there is no bucket {bucket}: make it, or check its name")
        case "NoSuchUpload":
            return UploadGone(f"the upload to s3://{bucket}/{key} is gone")
        case "RequestTimeTooSkewed" | "AccessDeniedTimeSkewed":
            return ObjectStoreError(
                "the clocks of this host and of the object storage differ too much: set this "
                "host's clock (timedatectl), or the server's"
            )
    if fault.code in _CREDENTIAL_CODES:
        return ObjectStoreError(
            "object storage refuses blockd's credentials: check access_key and secret_key "
            "(etc/blockd.toml, [object_storage] credentials)"
        )
    if fault.code in _REGION_CODES or fault.status in (301, 307, 308):
        where = f" {fault.region}" if fault.region else ""
        return BucketUnfit(f"bucket {bucket} lies in another region{where}: choose another bucket")
    if fault.status in (412, 416):  # 416: it is shorter now
        return ObjectChanged(bucket, key)
    if fault.status == 403:
        return BucketUnfit(
            f"blockd's credentials may not use bucket {bucket} for this: change its policy, or "
            "choose another bucket"
        )
    said = fault.code or fault.message or "no reason"
    return ObjectStoreError(f"object storage refuses s3://{bucket}/{key}: {fault.status} {said}")


def parse_parts(body: bytes) -> tuple[list[Part], str | None]:
    """A page of `ListParts`, and the marker of the next one."""
    document = parse_document(body)
    try:
        parts = [
            Part(
                int(part.findtext("{*}PartNumber") or ""),
                int(part.findtext("{*}Size") or ""),
                (part.findtext("{*}ETag") or "").strip('"'),
            )
            for part in document.findall("{*}Part")
        ]
    except ValueError as err:
        raise Transient("the list of parts cannot be read") from err
    following = document.findtext("{*}NextPartNumberMarker")
    return parts, following if _is_truncated(document) else None


def parse_uploads(body: bytes) -> tuple[list[Upload], dict[str, str] | None]:
    """A page of `ListMultipartUploads`, and the markers of the next one."""
    document = parse_document(body)
    uploads = [
        Upload(
            upload.findtext("{*}Key") or "",
            upload.findtext("{*}UploadId") or "",
            upload.findtext("{*}Initiated") or "",
        )
        for upload in document.findall("{*}Upload")
    ]
    if not _is_truncated(document):
        return uploads, None
    return uploads, {
        "key-marker": document.findtext("{*}NextKeyMarker") or "",
        "upload-id-marker": document.findtext("{*}NextUploadIdMarker") or "",
    }


def _is_truncated(document: ElementTree.Element) -> bool:
    return (document.findtext("{*}IsTruncated") or "").strip() == "true"


def _word(text: str | None) -> str:
    """A hostile server's text, fit for a log."""
    return "".join(c for c in (text or "")[:_LONGEST_WORD] if c.isprintable())
