"""Settings of the server: defaults < TOML file < COGFLARE_* variables < COGFLARE_*_FILE secrets.

The only reader of the process environment. `docs/reference/settings.md` lists every name.
"""

import os
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

_PREFIX = "COGFLARE_"
_LISTS = frozenset({"trusted_proxies", "outgoing_networks"})
_POSITIVE = (
    *("max_body", "max_file_bytes", "max_result_bytes", "max_strikes", "max_log_bytes", "max_output_bytes"),
    *("lease_s", "close_grace_s", "heartbeat_s", "silence_s", "stop_s", "retry_first_s", "retry_cap_s"),
    *("quarantine_after", "quarantine_s", "max_queued", "max_queued_model", "max_files_per_attempt"),
    *("max_upload_bytes", "upload_kept_s", "webhook_timeout_s", "webhook_give_up_s"),
)
_NOT_NEGATIVE = ("run_limit_s", "start_limit_s", "retain_data_s", "retain_records_s", "max_inline_bytes")
_LONGEST_S = 1e10
_RETENTIONS = {"replicate": 3600.0}


class SettingsError(Exception):
    """A setting has a value that cannot be used; the text names it."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a server node needs to know. Durations in seconds, sizes in bytes."""

    data: str = "cogflare-data"
    """Folder of the SQLite file and of stored files."""
    database_url: str = ""
    """`sqlite:///path` or `postgresql://…`; empty: a SQLite file in the data folder."""
    host: str = "127.0.0.1"
    port: int = 8000
    public_url: str | None = None
    """Origin that clients reach, such as `https://api.example.com`; every URL that is handed out begins with it."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks whose X-Forwarded-* headers count."""
    tls_cert: str | None = None
    tls_key: str | None = None
    node: str = ""
    """Name of this server among those that share a database; empty: the host's name."""
    admin_token: str | None = None
    """Secret of an admin token that always works; empty: the first start makes one and shows it once."""
    secret_key: str | None = None
    """Key of what is stored sealed (secrets of webhooks); empty: the first start makes one in the data folder."""
    max_body: int = 32 * 1024 * 1024
    max_file_bytes: int = 2 * 1024**3
    max_files_per_attempt: int = 1000
    """Output files that a worker may send of one attempt."""
    max_result_bytes: int = 16 * 1024 * 1024
    lease_s: float = 60.0
    """Silence after which what a worker holds runs elsewhere."""
    close_grace_s: float = 15.0
    """The same after its connection closed without a goodbye."""
    heartbeat_s: float = 5.0
    silence_s: float = 15.0
    max_strikes: int = 3
    """Started attempts that may be lost to infrastructure before a prediction fails."""
    retry_first_s: float = 1.0
    """Pause before the next attempt after the first loss; it doubles with each further one, up to `retry_cap_s`."""
    retry_cap_s: float = 60.0
    run_limit_s: float = 1800.0
    """How long a model may run a prediction, unless the model has a limit of its own; 0: for ever."""
    start_limit_s: float = 0.0
    """How long a prediction may wait for its start, unless the model has a limit of its own; 0: for ever."""
    quarantine_after: int = 5
    """Runs lost in a row after which a worker gets nothing more until it has proved healthy."""
    quarantine_s: float = 10.0
    """How long the first quarantine lasts at least; it doubles with each further one in a row, up to 10 minutes."""
    max_queued: int = 100_000
    """Waiting predictions of one account; more are refused."""
    max_queued_model: int = 1_000_000
    """Waiting predictions of one model, unless the model has a limit of its own."""
    max_log_bytes: int = 1024 * 1024
    """Log of one attempt; the rest is cut off, and says so."""
    max_output_bytes: int = 16 * 1024 * 1024
    """Items of one iterator's output, together; the rest is cut off, and says so."""
    retention: str = ""
    """`replicate`: data goes after an hour, as on Replicate; empty: what the next two say."""
    retain_data_s: float = 30 * 86_400.0
    """How long inputs, outputs, logs and files are kept after the end of their prediction; 0: for ever."""
    retain_records_s: float = 365 * 86_400.0
    """How long the record of a prediction is kept, without its data; 0: for ever."""
    storage: str = ""
    """Where files are: `s3://bucket` or `s3://bucket/prefix`; empty: in the data folder."""
    s3_endpoint: str | None = None
    """Of a service that is not Amazon's, such as `https://ACCOUNT.r2.cloudflarestorage.com`."""
    s3_region: str = ""
    """Empty: `auto` with an endpoint of one's own, else `us-east-1`."""
    s3_access_key_id: str | None = None
    s3_secret_access_key: str | None = None
    s3_public_url: str | None = None
    """Domain under which the bucket is public; downloads are sent there."""
    s3_direct_uploads: bool = True
    """Whether workers send files straight to the bucket; else through this server."""
    s3_direct_downloads: bool = True
    """Whether downloads are sent on to the bucket; else they come through this server."""
    max_upload_bytes: int = 100 * 1024 * 1024
    """Largest file that a client may upload."""
    upload_kept_s: float = 86_400.0
    """How long a client's file is kept."""
    max_inline_bytes: int = 256 * 1024
    """Largest data URL that stays in an input; a larger one is moved to the storage; 0: all are."""
    outgoing_networks: tuple[str, ...] = ()
    """Networks inside, such as `127.0.0.0/8`, that webhooks may reach all the same."""
    webhook_timeout_s: float = 10.0
    webhook_give_up_s: float = 86_400.0
    """How long the message about an end is tried again."""
    stop_s: float = 10.0
    """Limit of a graceful stop."""
    log_format: str = "text"
    """`text` for people, `json` for machines."""

    def database(self) -> str:
        """Return the database URL in force."""
        return self.database_url or f"sqlite:///{Path(self.data) / 'cogflare.db'}"

    def data_kept_s(self) -> float:
        """Return for how long the data of an ended prediction is kept; 0: for ever."""
        return _RETENTIONS.get(self.retention, self.retain_data_s)

    def node_name(self) -> str:
        """Return the name of this node."""
        return self.node or socket.gethostname() or "node"


def load(path: str | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read the settings; `overrides` (the command line) win over all. Raises `SettingsError`."""
    values: dict[str, Any] = {}
    if path is not None:
        values |= _file(path)
    values |= _environment(os.environ)
    values |= {name: value for name, value in (overrides or {}).items() if value is not None}
    try:
        settings = msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(_spoken(str(error))) from error
    if not 0 <= settings.port <= 65535:
        raise SettingsError(f"the setting port is {settings.port}: a port is a number from 0 to 65535")
    for name in _POSITIVE:
        if getattr(settings, name) <= 0:
            raise SettingsError(f"the setting {name} has to be above 0")
    for name in _NOT_NEGATIVE:
        if not 0 <= getattr(settings, name) <= _LONGEST_S:
            raise SettingsError(f"the setting {name} has to be between 0 (for ever) and {_LONGEST_S:.0f}")
    if settings.retention and settings.retention not in _RETENTIONS:
        known = " or ".join(_RETENTIONS)
        raise SettingsError(
            f"the setting retention is {settings.retention!r}: it may be {known}, or empty for what retain_data_s says"
        )
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise SettingsError("tls_cert and tls_key go together: give both, or neither")
    return settings


def _spoken(error: str) -> str:
    """Say what a validation found, naming the setting and not the path of a JSON value."""
    what, _, where = error.partition(" - at `$.")
    if where:
        return f"the setting {where.rstrip('`')}: {what}"
    return what.replace("Object contains unknown field", "there is no setting")


def _file(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise SettingsError(f"settings file {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"settings file {path}: {error}") from error


def _environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings among the variables; other COGFLARE_* names (of clients and agents) are none of ours."""
    found: dict[str, Any] = {}
    for name in Settings.__struct_fields__:
        variable = _PREFIX + name.upper()
        secret = environ.get(f"{variable}_FILE")
        if secret is not None:
            try:
                found[name] = Path(secret).read_text().strip()
            except OSError as error:
                raise SettingsError(f"{variable}_FILE: {secret}: {error.strerror}") from error
        elif environ.get(variable):
            found[name] = environ[variable]
        if name in _LISTS and name in found:
            found[name] = [part.strip() for part in found[name].split(",") if part.strip()]
    return found
