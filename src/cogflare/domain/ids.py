"""Identifiers: lower-case ULIDs for records, random keys for capabilities, and the names of queues."""

import re
import secrets

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]
ID_LENGTH = 26
KEY_LENGTH = 40
STREAM_LENGTH = ID_LENGTH + 1 + KEY_LENGTH
SHARED = "shared"  # the account whose models and workers every account may use

_ROUTE = "route."  # no account's id has a dot
_LAST_MS = (1 << 48) - 1
HIGHEST_ID = "~"
_CLIENT_ID = re.compile(r"[A-Za-z0-9._:-]{1,200}", re.ASCII)


def _base32(value: int, length: int) -> str:
    parts = []
    for _ in range(length // 2):
        parts.append(_PAIRS[value & 1023])
        value >>= 10
    return "".join(reversed(parts))


class _Randomness:
    """Random bytes of the operating system, fetched some hundred ids at a time: one call each would be felt."""

    def __init__(self) -> None:
        self._pool = b""
        self._at = 0

    def bits(self, size: int) -> int:
        """Return `size` random bytes as an integer."""
        if self._at + size > len(self._pool):
            self._pool, self._at = secrets.token_bytes(8192), 0
        start, self._at = self._at, self._at + size
        return int.from_bytes(self._pool[start : self._at])


_random = _Randomness()


def new_id(now: int) -> str:
    """Return a ULID for the time `now` (microseconds since 1970): 26 characters that sort by time."""
    return _base32((now // 1000) << 80 | _random.bits(10), ID_LENGTH)


def lowest_id(time: int) -> str:
    """Return what sorts before every id of this time (microseconds since 1970) and of later ones."""
    return _base32(min(max(time, 0) // 1000, _LAST_MS) << 80, ID_LENGTH)


def new_key() -> str:
    """Return an unguessable key (200 random bits, 40 characters) for a URL that is its own authorization."""
    return _base32(_random.bits(25), KEY_LENGTH)


def new_file_id(now: int) -> str:
    """Return an unguessable key that sorts by time: a ULID and 70 random bits more."""
    return new_id(now) + _base32(_random.bits(9), KEY_LENGTH - ID_LENGTH)


def new_stream_key(*, of_files: bool) -> str:
    """Return the key of a prediction's stream; its first letter says whether the output is files."""
    return f"{'f' if of_files else 't'}{new_key()}"


def streams_files(token: str) -> bool:
    """Say whether the stream that this token (a prediction's id and the key of its stream) opens is one of files."""
    return len(token) == STREAM_LENGTH and token[ID_LENGTH] == "f"


def is_id(text: str) -> bool:
    """Say whether the text has the form of an id."""
    return len(text) == ID_LENGTH and all(char in _ALPHABET for char in text)


def is_key(text: str) -> bool:
    """Say whether the text has the form of a key, or of a file's id."""
    return len(text) == KEY_LENGTH and all(char in _ALPHABET for char in text)


def is_client_id(text: str) -> bool:
    """Say whether the text may be an id that a client gives."""
    return _CLIENT_ID.fullmatch(text) is not None and text not in (".", "..")


def is_version(text: str) -> bool:
    """Say whether the text has the form of a version id (64 lower-case hex digits)."""
    return len(text) == 64 and all(char in "0123456789abcdef" for char in text)


def model_queue(pool: str, owner: str, name: str) -> str:
    """Return the queue of predictions that any version of the model may run on the pool's workers."""
    return f"{pool}/{owner}/{name}"


def model_of_queue(queue: str) -> str:
    """Return the model (owner/name) of such a queue."""
    return queue.partition("/")[2]


def route_queue(account: str, owner: str, name: str) -> str:
    """Return the queue of predictions that no worker is to take: they wait for a provider of the account."""
    return f"{_ROUTE}{account}/{owner}/{name}"


def is_route_queue(queue: str) -> bool:
    """Say whether no worker serves this queue, because what waits in it waits for a provider."""
    return queue.startswith(_ROUTE)


def of_route_queue(queue: str) -> tuple[str, str]:
    """Return the account and the model (owner/name) of such a queue."""
    account, _, model = queue.removeprefix(_ROUTE).partition("/")
    return account, model


def version_queue(pool: str, version: str) -> str:
    """Return the queue of predictions that are pinned to a version."""
    return f"{pool}:{version}"
