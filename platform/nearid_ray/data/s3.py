"""What is particular about S3: how a place is written, what a refusal means, patience, and uploads that are whole.

Endpoint, region and credentials come from the usual AWS variables and profiles. A request that meets a server error
(5xx), a throttled answer or a broken connection is tried again, AWS_MAX_ATTEMPTS times in all (7 by default), after
waits that double from at most one second to at most twenty: about half a minute together.
"""

import os
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from nearid_ray.errors import StoreError, UsageError

FAILING = "the S3 server keeps failing"
"""How the message of a server begins that does not come back."""

_ATTEMPTS = "7"
_CONNECT_S, _ANSWER_S = 10.0, 60.0
"""How long a server may take to accept a connection, and to send the next piece of an answer."""
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
_EXPIRED = {"EXPIRED_TOKEN", "REQUEST_EXPIRED", "TOKEN_REFRESH_REQUIRED"}
_FAILING = {"INTERNAL_FAILURE", "INTERNAL_ERROR", "SERVICE_UNAVAILABLE", "SLOW_DOWN", "THROTTLING", "REQUEST_TIMEOUT"}


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


class NotExclusiveError(Exception):
    """The server cannot create an object only where there is none."""


def endpoint() -> str:
    """The server's address where it is not AWS, else ""."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def connect(uri: str) -> tuple[pafs.FileSystem, str]:
    """(file system that tries again, path) of an S3 place; a bucket on AWS is found in its region."""
    found, path = pafs.FileSystem.from_uri(quote(uri, safe="/:?&=@%+,~"))
    patience = pafs.AwsStandardS3RetryStrategy(max_attempts=_attempts())
    options: dict[str, Any] = {"connect_timeout": _CONNECT_S, "request_timeout": _ANSWER_S, "retry_strategy": patience}
    if found.region:
        options["region"] = found.region
    # Small files then go up in one request.
    return pafs.S3FileSystem(endpoint_override=endpoint() or None, allow_delayed_open=True, **options), path


def check_reachable() -> None:
    """Say at once that no server answers at AWS_ENDPOINT_URL; requests would be tried again and again.

    Raises:
        UsageError: nothing accepts a connection there.
    """
    if not endpoint():
        return
    address = urlsplit(endpoint())
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), timeout=_CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise UsageError(f"{_no_answer()} ({error})") from error


@contextmanager
def in_words(uri: str) -> Iterator[None]:
    """Turn what S3 refuses into words.

    Raises:
        UsageError: bucket, rights or address are wrong.
        StoreError: the server answered with errors however often it was asked.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        _raise_in_words(uri, str(error), error)
        raise


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


def create(uri: str, path: str, data: bytes) -> bool:
    """Make an object where there is none; False where there is one.

    Raises:
        NotExclusiveError: the server knows no such request.
        UsageError, StoreError: as `in_words`.
    """
    try:
        with _client() as client:
            client.put_object(Bucket=path.partition("/")[0], Key=path.partition("/")[2], Body=data, IfNoneMatch="*")
    except _Refused as refused:
        if refused.status in (409, 412):  # 409: somebody else is creating it
            return False
        if refused.status == 501:
            raise NotExclusiveError from refused
        refused.raise_in_words(uri)
    return True


def delete(uri: str, path: str) -> None:
    """Remove an object, if there is one; pyarrow would leave an empty object in place of its folder."""
    try:
        with _client() as client:
            client.delete_object(Bucket=path.partition("/")[0], Key=path.partition("/")[2])
    except _Refused as refused:
        refused.raise_in_words(uri)


class _Refused(Exception):
    """What the server answered, in the words that pyarrow has for it."""

    def __init__(self, status: int | None, message: str) -> None:
        super().__init__(message)
        self.status = status

    def raise_in_words(self, uri: str) -> None:
        _raise_in_words(uri, str(self), self)
        raise OSError(f"{uri}: {self}") from self


@contextmanager
def _client() -> Iterator[Any]:
    """A plain client, for what pyarrow cannot ask; its refusals are `_Refused`."""
    import botocore.config  # slow, and on disk never needed
    import botocore.exceptions
    import botocore.session

    retries: Any = {"mode": "standard", "total_max_attempts": _attempts()}
    config = botocore.config.Config(retries=retries, connect_timeout=_CONNECT_S, read_timeout=_ANSWER_S)
    try:
        yield botocore.session.get_session().create_client("s3", config=config)
    except botocore.exceptions.ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        code = _as_code(error.response["Error"]["Code"])
        bucket = error.response["Error"].get("BucketName", "")
        raise _Refused(status, f"bucket '{bucket}': AWS Error {code} (HTTP status {status}): {error}") from error
    except botocore.exceptions.NoCredentialsError as error:
        raise _Refused(None, f"AWS Error MISSING_AUTHENTICATION_TOKEN: {error}") from error
    except botocore.exceptions.HTTPClientError as error:
        raise _Refused(None, f"AWS Error NETWORK_CONNECTION: {error}") from error


def _attempts() -> int:
    given = os.environ.get("AWS_MAX_ATTEMPTS", _ATTEMPTS)
    if not given.isdecimal() or int(given) < 1:
        raise UsageError(f"AWS_MAX_ATTEMPTS is {given!r}; expected a number, 1 or more")
    return int(given)


def _raise_in_words(uri: str, message: str, error: Exception) -> None:
    """Raise what the person can do about S3's refusal; return where the message does not tell."""
    found = re.search(r"AWS Error ([A-Z_]+)(?: \(HTTP status (\d+)\))?", message)
    if found is None:
        return
    code, status = found[1], found[2]
    if named := re.search(r"Unable to parse ExceptionName: (\w+)", message):  # codes that pyarrow does not know
        code = _as_code(named[1])
    said = _meaning(code, status, message)
    if said is not None:
        raise UsageError(f"{uri}: {said}") from error
    if code in _FAILING or (status or "").startswith("5"):
        raise StoreError(
            f"{FAILING} at {endpoint() or 'AWS'} ({f'HTTP {status}' if status else code}) for {uri}, however often it "
            "was asked; run the same command again when it is well, what is finished stays"
        ) from error


def _meaning(code: str, status: str | None, message: str) -> str | None:
    """What the person can do about S3's refusal; None where it is no mistake of theirs, as far as one can see."""
    if code == "NO_SUCH_BUCKET":
        bucket = re.search(r"bucket '([^']*)'", message)
        return _no_bucket(bucket[1] if bucket else "")
    if code in _DENIED or status in ("401", "403"):
        expired = "; the credentials have expired" if code in _EXPIRED else ""
        return f"S3 at {endpoint() or 'AWS'} denies access{expired}; check {_CREDENTIALS} and the rights on the bucket"
    if code == "NETWORK_CONNECTION":
        return _no_answer()
    if status in ("301", "400", "412"):
        return (
            f"S3 at {endpoint() or 'AWS'} does not accept the request (HTTP {status}); check {_CREDENTIALS}, "
            "AWS_ENDPOINT_URL, AWS_DEFAULT_REGION and the bucket's name"
        )
    return None


def _as_code(name: str) -> str:
    """ExpiredToken -> EXPIRED_TOKEN."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper()


def _no_answer() -> str:
    return f"S3 at {endpoint() or 'AWS'} cannot be reached; check AWS_ENDPOINT_URL and the network"


def _no_bucket(bucket: str) -> str:
    return f"the bucket {bucket!r} does not exist; create it first, or correct its name"
