"""What is stored sealed, and the key for it: the setting `secret_key`, or `secret.key` in the data folder.

The store remembers a fingerprint of the key. A server with another key would make secrets that its neighbours cannot
open, so it does not start.
"""

import os
import secrets
from base64 import urlsafe_b64encode
from contextlib import suppress
from pathlib import Path
from typing import Final

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cogflare.store import secrets as store
from cogflare.store.base import Database

KEY_FILE: Final = "secret.key"
_LEAST_CHARS: Final = 32
_MAKE_ONE: Final = "`openssl rand -base64 32` makes one"


class VaultError(Exception):
    """The key cannot be used; the text says what to do."""


class Vault:
    """Seals and opens, with a key that is given or found by `unlock`."""

    def __init__(self, secret_key: str | None, folder: Path) -> None:
        if secret_key is not None and len(secret_key.strip()) < _LEAST_CHARS:
            raise VaultError(f"the setting secret_key has to have {_LEAST_CHARS} characters or more: {_MAKE_ONE}")
        self._given = secret_key
        self._file = folder / KEY_FILE
        self._fernet = None if secret_key is None else _fernet(secret_key)

    async def unlock(self, db: Database) -> None:
        """Find the key, or make one where nothing was ever sealed; raises `VaultError`."""
        known = await store.fingerprint(db)
        key = self._given or self._read() or (self._make() if known is None else None)
        if key is None:
            raise VaultError(f"the database has sealed secrets, and the key for them is not here. {self._advice()}")
        if known is None:
            known = await store.remember_fingerprint(db, _fingerprint(key))
        if known != _fingerprint(key):
            where = "of the setting secret_key" if self._given else f"in {self._file}"
            raise VaultError(
                f"the key {where} is not the one that the database's secrets are sealed with. {self._advice()}"
            )
        self._fernet = _fernet(key)

    def seal(self, content: bytes) -> str:
        """Return the content sealed."""
        return self._key().encrypt(content).decode()

    def open(self, sealed: str) -> bytes:
        """Return what was sealed; raises `VaultError`."""
        try:
            return self._key().decrypt(sealed)
        except (InvalidToken, ValueError) as error:
            raise VaultError("a sealed secret in the database is damaged, or of another key") from error

    def _key(self) -> Fernet:
        assert self._fernet is not None, "the vault is unlocked when the server starts"
        return self._fernet

    def _read(self) -> str | None:
        try:
            key = self._file.read_text().strip()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeError) as error:
            raise VaultError(f"cannot read {self._file}: {error}") from error
        if len(key) < _LEAST_CHARS:
            raise VaultError(
                f"{self._file} holds no key, which has {_LEAST_CHARS} characters or more. Put a copy of the key there,"
                " or remove the file if the server never ran with one"
            )
        return key

    def _make(self) -> str:
        """Write a new key, durably and for this user only, before anything is sealed with it."""
        draft = self._file.with_name(f"{KEY_FILE}.{secrets.token_hex(4)}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
                out.write(secrets.token_urlsafe(32) + "\n")
                out.flush()
                os.fsync(out.fileno())
            # A neighbour that starts in the same moment on the same folder may have been first.
            with suppress(FileExistsError):
                os.link(draft, self._file)
            draft.unlink()
            _sync(self._file.parent)
        except OSError as error:
            raise VaultError(f"cannot write {self._file}: {error.strerror}") from error
        return self._read() or self._make()

    def _advice(self) -> str:
        return (
            "Give this server the key of the one that made them: its setting secret_key (COGFLARE_SECRET_KEY), or a"
            f" copy of its file {KEY_FILE} as {self._file}. If that key is lost, `cogflare webhooks reset`"
            " begins anew."
        )


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _fernet(key: str) -> Fernet:
    return Fernet(urlsafe_b64encode(_derived(key, b"seal")))


def _fingerprint(key: str) -> str:
    return _derived(key, b"fingerprint").hex()


def _derived(key: str, purpose: bytes) -> bytes:
    """Derive 32 bytes from the key, which is any text with enough chance in it."""
    return HKDF(SHA256(), 32, None, b"cogflare " + purpose).derive(key.strip().encode())
