"""From the setting that names a storage to its store."""

from pathlib import Path

from cogflare.blobs.base import BlobStore
from cogflare.blobs.bucket import S3Options, find_bucket
from cogflare.blobs.local import LocalBlobStore
from cogflare.blobs.s3 import S3BlobStore
from cogflare.domain.clock import Clock


def open_blobs(data: Path, storage: str, options: S3Options, clock: Clock) -> BlobStore:
    """Return the store of `storage`, or of the data folder where that is empty; raises `ValueError`."""
    if not storage:
        return LocalBlobStore(data / "files")
    return S3BlobStore(find_bucket(storage, options), options, data / "scratch", clock)
