"""A bucket of an S3 service: its address, where keys are in it, and what its refusals mean for who runs the server."""

import html
import re
from typing import Final
from urllib.parse import urlsplit

import msgspec

from cogflare.blobs.base import BlobError, BlobFull, BlobMismatch, BlobMissing, BlobRefused, BlobUnavailable
from cogflare.blobs.sigv4 import Signing, path_of

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]", re.ASCII)
_CREDENTIALS: Final = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "Unauthorized", "InvalidToken", "ExpiredToken", "InvalidSecurity"}
)
_REGION: Final = frozenset(
    {"AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException", "TemporaryRedirect"}
)
_MISSING: Final = frozenset({"NoSuchKey", "NotFound"})
_PARTS: Final = frozenset({"NoSuchUpload", "InvalidPart", "InvalidPartOrder", "EntityTooSmall", "MalformedXML"})
_FULL: Final = frozenset({"QuotaExceeded", "QuotaExceededException", "XMinioStorageFull", "StorageFull"})


class NotOffered(BlobUnavailable):
    """The service does not have what was asked for."""


class S3Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a bucket is reached. `endpoint` None: Amazon's."""

    access_key_id: str
    secret_access_key: str
    endpoint: str | None = None
    region: str = ""
    public_url: str | None = None
    direct_uploads: bool = True
    direct_downloads: bool = True

    def __repr__(self) -> str:
        """Return what may be read in a log."""
        return f"S3Options({self.endpoint}, {self.region})"


class Bucket(msgspec.Struct, frozen=True):
    """Where objects are: `url` is the bucket's, `prefix` what all keys of ours begin with."""

    name: str
    url: str
    prefix: str
    signing: Signing

    def object(self, key: str) -> str:
        """Return the name of the object of a key; folders are those of a local store, so that files can be moved."""
        return f"{self.prefix}{key[:2]}/{key}"

    def key(self, object: str) -> str | None:
        """Return the key whose object this is; None for what is not ours."""
        key = object.rpartition("/")[2]
        return key if re.fullmatch(r"[0-9a-z]{40}", key) and object == self.object(key) else None

    def url_of(self, object: str) -> str:
        """Return the URL of an object."""
        return f"{self.url}/{path_of(object)}"

    def where(self) -> str:
        """Return who answers for the bucket."""
        return urlsplit(self.url).netloc


class Refusal(msgspec.Struct, frozen=True):
    """What an S3 service has answered, instead of what was asked for; `code` is empty where it has not said."""

    status: int
    code: str = ""
    region: str = ""

    @classmethod
    def read(cls, status: int, body: str, region: str = "") -> "Refusal":
        """Return what an answer says."""
        return cls(status, element(body, "Code"), region or element(body, "Region"))


def find_bucket(storage: str, options: S3Options) -> Bucket:
    """Return the bucket of `s3://bucket/prefix`; raises `ValueError` for what cannot be one."""
    scheme, _, place = storage.partition("://")
    name, _, prefix = place.partition("/")
    prefix = prefix.strip("/")
    if scheme != "s3" or not _NAME.fullmatch(name) or not re.fullmatch(r"[A-Za-z0-9!_.*'()/-]*", prefix):
        raise ValueError(
            f"the setting storage is {storage!r}: it may be s3://BUCKET or s3://BUCKET/PREFIX, or empty; "
            "the name of a bucket has 3 to 63 characters of a-z, 0-9, . and -"
        )
    if options.public_url and not _is_origin(options.public_url):
        raise ValueError("the setting s3_public_url has to be a URL like https://files.example.com")
    if not (options.access_key_id and options.secret_access_key):
        raise ValueError("the setting storage names a bucket: s3_access_key_id and s3_secret_access_key are needed too")
    region = options.region or ("auto" if options.endpoint else "us-east-1")
    signing = Signing(options.access_key_id, options.secret_access_key, region)
    return Bucket(name, _address(name, options.endpoint, region), f"{prefix}/" if prefix else "", signing)


def _is_origin(url: str) -> bool:
    """Say whether a URL is one that paths can be added to."""
    parts = urlsplit(url)
    is_plain = not (parts.query or parts.fragment or "@" in url)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and is_plain


def _address(name: str, endpoint: str | None, region: str) -> str:
    if endpoint is None:
        # A name with dots is no name in Amazon's certificate.
        host = f"s3.{region}.amazonaws.com"
        return f"https://{host}/{name}" if "." in name else f"https://{name}.{host}"
    parts = urlsplit(endpoint)
    if not _is_origin(endpoint):
        raise ValueError("the setting s3_endpoint has to be a URL like https://ACCOUNT.r2.cloudflarestorage.com")
    # R2 shows its endpoint with the bucket at the end.
    path = parts.path.rstrip("/").removesuffix(f"/{name}")
    return f"{parts.scheme}://{parts.netloc}{path}/{name}"


def refused(bucket: Bucket, refusal: Refusal) -> BlobError:
    """Return the error that an answer of the service is, in words for who runs the server."""
    if refusal.code in _PARTS:
        return BlobMismatch(f"the parts of this upload are not complete ({refusal.code})")
    if refusal.code in _FULL:
        return BlobFull("the bucket is full")
    if refusal.code in _MISSING or (refusal.status == 404 and not refusal.code):
        return BlobMissing("nothing is stored under this key")
    advice = _advice(bucket, refusal)
    if advice is not None:
        return BlobRefused(advice)
    if refusal.status == 501:
        return NotOffered(f"the storage at {bucket.where()} does not offer this")
    said = f"{refusal.status} {refusal.code}".strip()
    return BlobUnavailable(f"the storage at {bucket.where()} answered {said}")


def _advice(bucket: Bucket, refusal: Refusal) -> str | None:
    """Return what has to be done about a refusal that stays; None for one that may pass."""
    where, name, own = bucket.where(), bucket.name, bucket.signing.region
    code, status, region = refusal.code, refusal.status, refusal.region
    if code == "NoSuchBucket":
        return f"there is no bucket {name!r} at {where}: make it, or correct the setting storage"
    if code == "RequestTimeTooSkewed":
        return f"the storage at {where} finds that this machine's clock is wrong: set it (NTP)"
    if code in _REGION or (region not in ("", own) and status in (301, 400)):
        return f"the bucket {name!r} is not in the region {own!r}: set s3_region to {region or 'the one it is in'}"
    if code in _CREDENTIALS or status == 401:
        return f"the storage at {where} refuses the credentials: check s3_access_key_id and s3_secret_access_key"
    if status == 403:
        return f"the credentials for the bucket {name!r} lack rights: it takes read, write, delete and list objects"
    if status == 405 or 300 <= status < 400:
        return f"what answers at {where} is no S3 service (it said {status}): check s3_endpoint"
    return None


def element(body: str, name: str) -> str:
    """Return the text of the first element of this name in an answer; empty for none."""
    found = re.search(rf"<{name}>([^<]*)</{name}>", body)
    return html.unescape(found[1]) if found else ""
