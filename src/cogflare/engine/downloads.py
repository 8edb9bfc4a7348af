"""Downloads of uploads by signature: whoever has the URL reads the file, until the URL expires.

The signature is Replicate's: base64 of HMAC-SHA256 with the account's secret over `<owner> <id> <expiry>`.
"""

import base64
import binascii
import hashlib
import hmac
from urllib.parse import quote, urlencode

import msgspec

from cogflare.domain.clock import Clock
from cogflare.domain.errors import NotFound
from cogflare.engine.secrets import FILES, Secrets
from cogflare.engine.uploads import Uploads
from cogflare.store import catalog
from cogflare.store.base import Database
from cogflare.store.files import FileRow


class SignedPath(msgspec.Struct, frozen=True):
    """A path, with its query, that opens a file until `expiry_s` (seconds since 1970)."""

    path: str
    expiry_s: int


class Downloads:
    """Makes and checks signed URLs of uploads."""

    def __init__(self, db: Database, clock: Clock, uploads: Uploads, secrets: Secrets) -> None:
        self._db = db
        self._clock = clock
        self._uploads = uploads
        self._secrets = secrets

    async def sign(self, account: str, owner: str, row: FileRow, expires_s: int) -> SignedPath:
        """Return the path and query under which a file is read for so long; the path ends in the file's name."""
        expiry = self._clock.wall() // 1_000_000 + expires_s
        digest = _digest(await self._secrets.secret(account, FILES), owner, row.id, expiry)
        signature = base64.b64encode(digest).decode()
        path = f"/v1/files/{row.id}/download/{quote(row.name, safe='')}"
        query = urlencode({"owner": owner, "expiry": expiry, "signature": signature})
        return SignedPath(f"{path}?{query}", expiry)

    async def find(self, id: str, owner: str, expiry: str, signature: str) -> FileRow:
        """Return the file that a signed URL opens; raises `NotFound` for one that is not right, or over."""
        if not (expiry.isascii() and expiry.isdecimal() and len(expiry) <= 15):
            raise NotFound
        if int(expiry) * 1_000_000 <= self._clock.wall():
            raise NotFound
        account = None if "\0" in owner else await catalog.find_account(self._db, owner)
        given = _decoded(signature)
        if account is None or given is None:
            raise NotFound
        secrets = await self._secrets.valid(account.id, FILES)
        wanted = [_digest(secret.key, owner, id, int(expiry)) for secret in secrets]
        if not any(hmac.compare_digest(one, given) for one in wanted):
            raise NotFound
        return await self._uploads.find_signed(account.id, id)


def _digest(secret: bytes, owner: str, id: str, expiry: int) -> bytes:
    return hmac.digest(secret, f"{owner} {id} {expiry}".encode(), hashlib.sha256)


def _decoded(signature: str) -> bytes | None:
    try:
        # A plus sign that was not escaped comes as a blank.
        return base64.b64decode(signature.replace(" ", "+"), validate=True)
    except (binascii.Error, ValueError):
        return None
