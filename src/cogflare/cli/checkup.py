"""What `cogflare doctor` looks at: each check says in what state a part of a server is, and what to do about it.

Nothing is changed: what is written to the storage is removed again, and what the first start makes is left to it.
"""

import os
import secrets
import shutil
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

import httpx2

from cogflare.agent.unreached import why_unreached
from cogflare.app import SystemClock, open_storage
from cogflare.blobs.base import BlobError, BlobReader, BlobStore, Label
from cogflare.cli.findings import Finding, State
from cogflare.domain.clock import Clock
from cogflare.domain.ids import new_key
from cogflare.settings import Settings, SettingsError
from cogflare.store.base import Database, StoreError
from cogflare.store.catalog import find_account
from cogflare.store.open import open_database
from cogflare.store.secrets import fingerprint
from cogflare.vault import KEY_FILE, Vault, VaultError

_LEAST_FREE: Final = 1_000_000_000
_SLOW_CLOCK_S: Final = 30.0
_WRONG_CLOCK_S: Final = 600.0  # S3 refuses signatures that are 15 minutes off
_TIMEOUT: Final = httpx2.Timeout(15.0, connect=5.0)
_PROBE: Final = 300_000
_LABEL: Final = Label("text/plain", 'attachment; filename="check.txt"')


class Checkup:
    """The checks of one server's settings, in the order in which a start needs them."""

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._off_s: float | None = None

    async def run(self) -> AsyncIterator[Finding]:
        """Go through all checks."""
        async with httpx2.AsyncClient(timeout=_TIMEOUT) as http:
            yield self._folder()
            for finding in await self._database():
                yield finding
            for finding in await self._storage(http):
                yield finding
            yield await self._public_url(http)
        yield self._time()

    # --- this machine ----------------------------------------------------------------------------------------------

    def _folder(self) -> Finding:
        folder = Path(self._settings.data).absolute()
        place = next(path for path in (folder, *folder.parents) if path.exists())
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            todo = f"let this user write in {place}, or name another folder with the setting data"
            return Finding("data folder", "failed", f"{place} cannot be written to", todo)
        free = shutil.disk_usage(place).free
        there = str(folder) if place == folder else f"{folder} (the first start makes it)"
        detail = f"{there}, {free / 1e9:.1f} GB free"
        if free < _LEAST_FREE:
            return Finding("data folder", "warning", detail, "make room: a full disk stops whatever writes")
        return Finding("data folder", "ok", detail)

    def _time(self) -> Finding:
        if self._off_s is None:
            return Finding("clock", "ok", "not compared: no storage outside tells the time")
        if abs(self._off_s) < _SLOW_CLOCK_S:
            return Finding("clock", "ok", f"within {abs(self._off_s) + 1:.0f} s of the storage's")
        side = "ahead" if self._off_s > 0 else "behind"
        state: State = "failed" if abs(self._off_s) > _WRONG_CLOCK_S else "warning"
        return Finding("clock", state, f"{abs(self._off_s):.0f} s {side} of the storage's", "set the clock (NTP)")

    # --- the store -------------------------------------------------------------------------------------------------

    async def _database(self) -> list[Finding]:
        url = self._settings.database()
        path = Path(url.removeprefix("sqlite:///").partition("?")[0])
        if url.startswith("sqlite:") and not _is_there(path):
            return [
                Finding("database", "ok", f"{path} (the first start makes it)"),
                Finding("secret key", "ok", self._key_made()),
            ]
        try:
            db = open_database(url)
        except ValueError as error:
            return [Finding("database", "failed", str(error), "correct the setting database_url")]
        try:
            return await self._read(db)
        finally:
            await db.aclose()

    async def _read(self, db: Database) -> list[Finding]:
        kind = "PostgreSQL" if db.is_shared else "SQLite"
        try:
            await find_account(db, "")
        except StoreError as error:
            todo = "see to it that it runs and that the setting database_url is right"
            return [Finding("database", "failed", f"{kind}: {error}", todo)]
        found = Finding("database", "ok", f"{kind} answers")
        try:
            known = await fingerprint(db)
        except StoreError:
            return [found, Finding("secret key", "ok", "the next start brings the database up to date, and makes it")]
        return [found, await self._key(db, known)]

    async def _key(self, db: Database, known: str | None) -> Finding:
        try:
            vault = Vault(self._settings.secret_key, Path(self._settings.data))
            if known is None:
                return Finding("secret key", "ok", self._key_made())
            await vault.unlock(db)
        except VaultError as error:
            what, _, todo = str(error).partition(". ")
            return Finding("secret key", "failed", what, todo or "correct the setting secret_key")
        return Finding("secret key", "ok", "opens the database's secrets")

    def _key_made(self) -> str:
        if self._settings.secret_key:
            return "the setting secret_key"
        return f"{Path(self._settings.data) / KEY_FILE} (the first start makes it)"

    # --- the storage -----------------------------------------------------------------------------------------------

    async def _storage(self, http: httpx2.AsyncClient) -> list[Finding]:
        where = self._settings.storage or f"the folder {Path(self._settings.data) / 'files'}"
        if not self._settings.storage and not _is_there(Path(self._settings.data)):
            return [Finding("storage", "ok", f"{where} (the first start makes it)")]
        try:
            blobs = open_storage(self._settings, self._clock)
        except SettingsError as error:
            return [Finding("storage", "failed", where, str(error))]
        key, sent = new_key(), new_key()
        try:
            await blobs.check()
            content = secrets.token_hex(_PROBE // 2).encode()
            await blobs.put(key, _once(content), len(content), _LABEL)
            if (
                await _all(await blobs.open(key)) != content
                or await _all(await blobs.open(key, 9, 99)) != content[9:99]
            ):
                return [Finding("storage", "failed", where, "it gives back other bytes than were stored")]
            found = Finding("storage", "ok", f"{where}: writes, reads and removes")
            return [found, *await self._links(http, blobs, key, content), *await _uploads(http, blobs, sent)]
        except BlobError as error:
            return [Finding("storage", "failed", where, str(error))]
        finally:
            await _forget(blobs, key, sent)
            await blobs.aclose()

    async def _links(self, http: httpx2.AsyncClient, blobs: BlobStore, key: str, content: bytes) -> list[Finding]:
        """Download from the storage itself, as whoever reads an output does."""
        name = "downloads"
        url = await blobs.link(key, _LABEL, 60)
        if url is None:
            return [Finding(name, "ok", "through this server")]
        where = self._settings.s3_public_url or "links to the storage"
        todo = "check the setting s3_public_url: the bucket has to be public there"
        if not self._settings.s3_public_url:
            todo = "check s3_endpoint: clients use the same address; or set s3_direct_downloads = false"
        try:
            answer = await http.get(url, headers={"range": "bytes=9-98"})
        except httpx2.HTTPError as error:
            return [Finding(name, "failed", f"{where}: {why_unreached(error)}", todo)]
        self._note_time(answer)
        if answer.status_code not in (200, 206) or content[9:99] not in answer.content:
            return [Finding(name, "failed", f"{where}: answered {answer.status_code}", todo)]
        if answer.status_code == 200:
            return [Finding(name, "warning", f"{where}: no ranges", "players and resumed downloads want ranges")]
        kind, shown = answer.headers.get("content-type", ""), answer.headers.get("content-disposition")
        if kind.partition(";")[0] != _LABEL.content_type or shown != _LABEL.content_disposition:
            return [Finding(name, "warning", f"{where}: another type or name than was stored", todo)]
        return [Finding(name, "ok", f"{where}, with ranges")]

    def _note_time(self, answer: httpx2.Response) -> None:
        try:
            told = parsedate_to_datetime(answer.headers.get("date", "")).timestamp()
        except (TypeError, ValueError):
            return
        self._off_s = self._clock.wall() / 1e6 - told

    # --- the way in ------------------------------------------------------------------------------------------------

    async def _public_url(self, http: httpx2.AsyncClient) -> Finding:
        name, url = "public URL", self._settings.public_url
        if not url:
            here = f"{self._settings.host}:{self._settings.port}"
            return Finding(name, "ok", f"not set: URLs begin as the client's request did ({here} listens)")
        todo = "start the server; if it runs, check the proxy in front of it and the setting public_url"
        try:
            answer = await http.get(f"{url.rstrip('/')}/health")
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            return Finding(name, "warning", f"{url} does not answer: {why_unreached(error)}", todo)
        if answer.status_code != 200 or b'"status"' not in answer.content:
            return Finding(name, "warning", f"{url}/health answered {answer.status_code}, not as Cogflare does", todo)
        return Finding(name, "ok", f"{url} answers")


async def _uploads(http: httpx2.AsyncClient, blobs: BlobStore, key: str) -> list[Finding]:
    """Upload to the storage itself, as workers do."""
    name, content = "uploads", b"cogflare"
    target = await blobs.upload_target(key, _LABEL, len(content))
    if target is None:
        return [Finding(name, "ok", "through this server")]
    todo = "check s3_endpoint: workers use the same address; or set s3_direct_uploads = false"
    try:
        answer = await http.request(target.method, target.url, content=content, headers=target.headers)
    except httpx2.HTTPError as error:
        return [Finding(name, "failed", f"to the storage: {why_unreached(error)}", todo)]
    if answer.status_code >= 300 or await blobs.head(key) != len(content):
        return [Finding(name, "failed", f"to the storage: answered {answer.status_code}", todo)]
    return [Finding(name, "ok", "straight to the storage")]


def _is_there(path: Path) -> bool:
    return path.exists()


async def _forget(blobs: BlobStore, *keys: str) -> None:
    try:
        for key in keys:
            await blobs.delete(key)
    except BlobError:
        return  # what is wrong has been found already


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def _all(reader: BlobReader) -> bytes:
    try:
        return b"".join([piece async for piece in reader])
    finally:
        await reader.aclose()
