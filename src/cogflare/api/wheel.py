"""The wheel that this server gives to machines that join: its own package, packed in memory.

Made of what is installed, so that a worker is always as old as its server, however that was installed. The bytes
depend on nothing but the content (no times, no compression): every node with the same files serves the same wheel. What
it runs on is pinned apart, in ``agent/requirements.txt``; the wheel itself asks for nothing.
"""

import hashlib
import io
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

from cogflare import __version__

_PACKAGE: Final = "cogflare"
_INFO: Final = f"{_PACKAGE}-{__version__}.dist-info"
_ABOUT: Final = {
    "METADATA": f"Metadata-Version: 2.1\nName: {_PACKAGE}\nVersion: {__version__}\nRequires-Python: >=3.11\n",
    "WHEEL": f"Wheel-Version: 1.0\nGenerator: {_PACKAGE} {__version__}\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "entry_points.txt": "[console_scripts]\ncogflare-worker = cogflare.cli.workergroup:main\n",
}
_FIRST_DAY: Final = (1980, 1, 1, 0, 0, 0)
_READABLE: Final = 0o100644 << 16
_COMPILED: Final = (".pyc", ".pyo")


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel as its server sends it."""

    name: str
    content: bytes
    sha256: str


def pack() -> Wheel:
    """Return the wheel of the installed package; takes some ten milliseconds."""
    content = {f"{_PACKAGE}/{name}": data for name, data in _walk(files(_PACKAGE), "")}
    content |= {f"{_INFO}/{name}": text.encode() for name, text in _ABOUT.items()}
    record = "".join(f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in content.items())
    content[f"{_INFO}/RECORD"] = f"{record}{_INFO}/RECORD,,\n".encode()
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_STORED) as archive:
        for name, data in content.items():
            entry = zipfile.ZipInfo(name, _FIRST_DAY)
            entry.external_attr = _READABLE
            entry.create_system = 3
            archive.writestr(entry, data)
    packed = held.getvalue()
    return Wheel(f"{_PACKAGE}-{__version__}-py3-none-any.whl", packed, hashlib.sha256(packed).hexdigest())


def _walk(folder: Traversable, above: str) -> Iterator[tuple[str, bytes]]:
    """Yield the names and contents of all files below, in order; what Python compiled is not among them."""
    for entry in sorted(folder.iterdir(), key=lambda found: found.name):
        if entry.is_dir():
            if entry.name != "__pycache__":
                yield from _walk(entry, f"{above}{entry.name}/")
        elif not entry.name.startswith(".") and not entry.name.endswith(_COMPILED):
            yield f"{above}{entry.name}", entry.read_bytes()


def _digest(data: bytes) -> str:
    """Return a checksum as wheels' records have it."""
    return urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
