"""Secrets that were planted, and the search for them in whatever a test left behind."""

from collections.abc import Iterable
from pathlib import Path


def leaks(folder: Path, secrets: Iterable[str]) -> list[str]:
    """Return the files under a folder (logs, databases, dumps) that have one of the secrets in them."""
    needles = [secret.encode() for secret in secrets]
    if not needles:
        return []
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [str(path.relative_to(folder)) for path in files if _has(path.read_bytes(), needles)]


def _has(content: bytes, needles: list[bytes]) -> bool:
    return any(needle in content for needle in needles)
