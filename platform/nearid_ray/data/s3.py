"""What is particular about S3: how a place is written, what a refusal means, and uploads that are whole."""

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.fs as pafs

from nearid_ray.errors import UsageError

_CREDENTIALS = "the usual AWS variables (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), profile or role"
_DENIED = {
    "ACCESS_DENIED",
    "EXPIRED_TOKEN",
    "INVALID_ACCESS_KEY_ID",
    "INVALID_CLIENT_TOKEN_ID",
    "INVALID_SIGNATURE",
    "MISSING_AUTHENTICATION_TOKEN",
    "REQUEST_EXPIRED",
    "SIGNATURE_DOES_NOT_MATCH",
    "UNRECOGNIZED_CLIENT",
}
"""Codes of a refusal for want of rights, as pyarrow's messages name them."""


def is_s3(uri: str) -> bool:
    return uri.partition("://")[0].lower() == "s3"


def check_uri(uri: str) -> None:
    """Refuse what is not `s3://bucket/prefix`.

    Raises:
        UsageError: there is no bucket, an empty or dotted folder name, a query, or credentials, which must not stand
            where they are logged (the message does not repeat them).
    """
    bucket, _, prefix = uri.partition("://")[2].partition("/")
    if "@" in bucket:
        raise UsageError(f"an S3 place with credentials in it was given; leave them out and use {_CREDENTIALS}")
    if "?" in uri:
        raise UsageError(f"{uri}: options after `?` are not read; use AWS_ENDPOINT_URL and AWS_DEFAULT_REGION")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", bucket):
        raise UsageError(f"{uri}: {bucket!r} cannot name a bucket; expected s3://bucket/prefix")
    if {"", ".", ".."} & set(prefix.rstrip("/").split("/") if prefix.rstrip("/") else []):
        raise UsageError(f"{uri}: a folder's name is empty or made of dots; expected s3://bucket/prefix")


@contextmanager
def in_words(uri: str) -> Iterator[None]:
    """Turn what S3 refuses for the sake of bucket, rights or connection into a UsageError that says so."""
    try:
        yield
    except OSError as error:
        said = _meaning(str(error))
        if said is None:
            raise
        raise UsageError(f"{uri}: {said}") from error


def check_bucket(filesystem: pafs.FileSystem, path: str) -> None:
    """Refuse a path in a bucket that does not exist; pyarrow takes it for an empty one.

    Raises:
        UsageError: the bucket does not exist.
        OSError: S3 refuses to say.
    """
    bucket = path.partition("/")[0]
    if filesystem.get_file_info(bucket).type == pafs.FileType.NotFound:
        raise UsageError(_no_bucket(bucket))


def upload(filesystem: pafs.FileSystem, path: str, data: bytes | pa.Buffer) -> None:
    """Make an object appear whole.

    pyarrow completes an upload that it closes or forgets, also a half one. An interrupt must therefore not reach the
    code between opening and closing: it runs on a thread of its own, and interrupts go to the main thread alone.
    """

    def whole() -> None:
        with filesystem.open_output_stream(path) as stream:
            stream.write(data)

    with ThreadPoolExecutor(1, "upload") as thread:
        thread.submit(whole).result()


def _meaning(message: str) -> str | None:
    """What the person can do about S3's refusal; None where it is no mistake of theirs, as far as one can see."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
    found = re.search(r"AWS Error ([A-Z_]+)(?: \(HTTP status (\d+)\))?", message)
    if found is None:
        return None
    code, status = found[1], found[2]
    if code == "NO_SUCH_BUCKET":
        bucket = re.search(r"bucket '([^']*)'", message)
        return _no_bucket(bucket[1] if bucket else "")
    if code in _DENIED or status in ("401", "403"):
        return f"S3 at {endpoint} denies access; check {_CREDENTIALS} and the rights on the bucket"
    if code == "NETWORK_CONNECTION":
        return f"S3 at {endpoint} cannot be reached; check AWS_ENDPOINT_URL and the network"
    if status in ("301", "400", "412"):
        return (
            f"S3 at {endpoint} does not accept the request (HTTP {status}); check {_CREDENTIALS}, AWS_ENDPOINT_URL, "
            "AWS_DEFAULT_REGION and the bucket's name"
        )
    return None


def _no_bucket(bucket: str) -> str:
    return f"the bucket {bucket!r} does not exist; create it first, or correct its name"
