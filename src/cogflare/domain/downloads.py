"""What a browser may do with a stored file: show a few kinds that cannot act as a page of ours, download the rest."""

import re
from typing import Final
from urllib.parse import quote

_SHOWN: Final = re.compile(
    r"(?:image|audio|video)/(?!svg|[^;]*xml)[a-z0-9.+-]+|text/plain|application/(?:json|pdf)", re.ASCII
)


def is_shown(content_type: str) -> bool:
    """Say whether a browser may show files of this type from our origin."""
    return _SHOWN.fullmatch(content_type.partition(";")[0].strip()) is not None


def disposition(name: str, content_type: str) -> str:
    """Return the `Content-Disposition` of a file."""
    kind = "inline" if is_shown(content_type) else "attachment"
    plain = re.sub(r"[^ !#-\[\]-~]", "_", name)
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
