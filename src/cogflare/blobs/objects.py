"""obstore's end of a bucket: what is there, and its bytes; errors in the words of the seam."""

import re
from collections.abc import Awaitable
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeVar

import obstore
from obstore.exceptions import BaseError, PreconditionError
from obstore.store import S3Store

from cogflare.blobs.base import BlobUnavailable
from cogflare.blobs.bucket import Bucket, Refusal, refused

if TYPE_CHECKING:
    from obstore.store import S3Credential

_TIMEOUT: Final = "60s"  # of a whole request, and none is for more than a window of an object
_RETRIES: Final = 3
_RETRY_S: Final = timedelta(seconds=30)

T = TypeVar("T")


class Objects:
    """The objects of a bucket, by their paths in it."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._store = _connect(bucket)

    async def head(self, path: str) -> tuple[int, str | None]:
        """Return the size and the tag of an object."""
        found = await self._told(obstore.head_async(self._store, path))
        return found["size"], found["e_tag"]

    async def read(self, path: str, tag: str | None, begin: int, end: int) -> bytes:
        """Return these bytes of an object, if it is still the one of this tag."""
        found = await self._told(obstore.get_async(self._store, path, options={"range": (begin, end), "if_match": tag}))
        return bytes(await self._told(found.bytes_async()))

    async def delete(self, path: str) -> None:
        """Remove an object."""
        await self._told(obstore.delete_async(self._store, path))

    async def _told(self, work: Awaitable[T]) -> T:
        """Wait for obstore; raises a `BlobError` for what went wrong."""
        try:
            return await work
        except FileNotFoundError as error:
            raise refused(self._bucket, Refusal.read(404, str(error))) from None
        except PreconditionError:
            raise BlobUnavailable("a blob was replaced while it was read") from None
        except BaseError as error:
            # Its text is for developers, and has the answer of the service within.
            status = re.search(r"status code: (\d{3})", str(error))
            if status is None:
                raise BlobUnavailable(f"the storage at {self._bucket.where()} does not answer") from None
            raise refused(self._bucket, Refusal.read(int(status[1]), str(error))) from None


def _connect(bucket: Bucket) -> S3Store:
    """Return a store that takes nothing from the environment."""
    signing = bucket.signing

    def credentials() -> "S3Credential":
        return {
            "access_key_id": signing.access_key_id,
            "secret_access_key": signing.secret_access_key,
            "token": None,
            "expires_at": None,
        }

    is_virtual = bucket.url.partition("://")[2].startswith(f"{bucket.name}.")
    return S3Store(
        bucket.name,
        config={
            # The name of the endpoint that goes before all others, those of the environment included.
            "aws_endpoint_url_s3": bucket.url if is_virtual else bucket.url.removesuffix(f"/{bucket.name}"),
            "region": signing.region,
            "virtual_hosted_style_request": is_virtual,
            "skip_signature": False,
            "disable_bulk_delete": True,
        },
        credential_provider=credentials,
        client_options={
            "allow_http": bucket.url.startswith("http:"),
            "connect_timeout": "5s",
            "timeout": _TIMEOUT,
        },
        retry_config={"max_retries": _RETRIES, "retry_timeout": _RETRY_S},
    )
