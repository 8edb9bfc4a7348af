"""Problem documents: every refusal of the API, in the words Replicate uses where its words are known.

A problem is raised where it is found and rendered once, at the edge. Its body is always one JSON object, since a
client that meets a bare string or list there falls over. Texts come from the wire reference, sections 1.4 and 2.2;
`x-should-retry: false` keeps the Stainless clients from repeating what cannot get better.
"""

from collections.abc import Iterable, Mapping
from math import ceil
from typing import Any, Final

import msgspec
from starlette.responses import Response

from cogflare.domain.inputs import FieldProblem

MEDIA_TYPE: Final = "application/problem+json"
BODY: Final = "The request body"
_NO_RETRY: Final = {"x-should-retry": "false"}


class Problem(Exception):
    """A refusal: HTTP `status`, human `detail`, and what else its body and headers carry."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        title: str | None = None,
        invalid_fields: tuple[FieldProblem, ...] = (),
        retry_after_s: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.title = title
        self.invalid_fields = invalid_fields
        self.retry_after_s = retry_after_s
        self.headers: dict[str, str] = dict(headers or {})
        if retry_after_s is not None:
            self.headers["retry-after"] = str(retry_after_s)

    def body(self) -> bytes:
        """Render the document; never fails, whatever text a request brought into it."""
        document: dict[str, Any] = {"detail": self.detail, "status": self.status}
        if self.title is not None:
            document["title"] = self.title
        if self.invalid_fields:
            document["invalid_fields"] = self.invalid_fields
        if self.retry_after_s is not None and self.status == 429:
            document["retry_after"] = self.retry_after_s
        try:
            return msgspec.json.encode(document)
        except UnicodeEncodeError:
            clean = self.detail.encode("utf-8", "replace").decode()
            return msgspec.json.encode({"detail": clean, "status": self.status})

    def response(self) -> Response:
        """Return the document as an HTTP response."""
        return Response(self.body(), self.status, headers=self.headers, media_type=MEDIA_TYPE)


def unauthenticated(*, token_given: bool) -> Problem:
    """401: no token, or one that is not known."""
    what = "a valid authentication token" if token_given else "an authentication token"
    return Problem(
        401, f"You did not pass {what}", title="Unauthenticated", headers={"www-authenticate": "Bearer", **_NO_RETRY}
    )


def forbidden(detail: str = "You do not have permission to perform this action.") -> Problem:
    """403: a known caller without the right."""
    return Problem(403, detail, title="Forbidden")


def not_found(detail: str = "The requested resource could not be found.") -> Problem:
    """404: absent, or not the caller's to see; both look the same."""
    return Problem(404, detail)


def file_not_found() -> Problem:
    """404 of the files endpoints."""
    return Problem(404, "File not found")


def invalid_cursor() -> Problem:
    """404: a cursor that this server did not make."""
    return Problem(404, "Invalid cursor")


def method_not_allowed(method: str, allowed: Iterable[str]) -> Problem:
    """405, naming the methods that the path has."""
    return Problem(405, f'Method "{method}" not allowed.', headers={"allow": ", ".join(allowed)})


def upgrade_required(detail: str) -> Problem:
    """426: a protocol that is not spoken here."""
    return Problem(426, detail, title="Upgrade required", headers={"upgrade": "websocket"})


def too_many_files(limit: int) -> Problem:
    """413: an attempt that has announced as many files as it may."""
    return Problem(413, f"Output has more than {limit} files")


def version_not_permitted() -> Problem:
    """422: a version reference that is malformed, unknown, or another tenant's."""
    return Problem(
        422,
        "The specified version does not exist (or perhaps you don't have permission to use it?)",
        title="Invalid version or not permitted",
    )


def invalid_input(problems: Iterable[FieldProblem]) -> Problem:
    """422: one line and one entry for each thing wrong in the request body."""
    fields = tuple(problems)
    lines = (f"- {f'{one.field}: ' if one.field else ''}{one.description}\n" for one in fields)
    return Problem(422, "".join(lines), title="Input validation failed", invalid_fields=fields)


def bad_request(detail: str, title: str = "Bad request") -> Problem:
    """400: a parameter or header that cannot be understood."""
    return Problem(400, detail, title=title)


def malformed_json(reason: str, what: str = BODY) -> Problem:
    """400: the body, or a field of it, is not JSON text that can be kept; `reason` says what and at which byte."""
    return Problem(400, f"{what} is not valid JSON: {reason}", title="Malformed JSON")


def unsupported_media_type(given: str, wanted: str) -> Problem:
    """415: a body of a kind that the endpoint does not read."""
    return Problem(415, f"Unsupported media type {given!r} in request: send {wanted}", title="Unsupported media type")


def body_too_large(limit_bytes: int) -> Problem:
    """413: a request body over the limit."""
    return Problem(413, f"Request bodies must be less than {_size(limit_bytes)} in size", title="Payload too large")


def fields_too_large(limit_bytes: int) -> Problem:
    """413: what a form has beside its file is over the limit."""
    return Problem(
        413, f"All fields but content must be less than {_size(limit_bytes)} together", title="Payload too large"
    )


def output_too_large(limit_bytes: int) -> Problem:
    """413 of outputs that workers send; it becomes the error of their predictions."""
    return Problem(413, f"Output is larger than {limit_bytes} bytes")


def file_too_large(limit_bytes: int) -> Problem:
    """413 of file uploads."""
    return Problem(413, f"Files must be less than {_size(limit_bytes)} in size")


def conflict(detail: str) -> Problem:
    """409: the request contradicts what is stored; asking again changes nothing."""
    return Problem(409, detail, title="Conflict", headers=_NO_RETRY)


def insufficient_budget(detail: str) -> Problem:
    """402: nothing is left to pay for this run."""
    return Problem(402, detail, title="Insufficient credit", headers=_NO_RETRY)


def reused(detail: str) -> Problem:
    """422: the key or id of this request belongs to another one."""
    return Problem(422, detail, title="Reused for another request", headers=_NO_RETRY)


def queue_full(detail: str, retry_after_s: int = 5) -> Problem:
    """429: as many predictions wait as may wait; `detail` says whose."""
    return Problem(429, detail, title="Too many waiting predictions", retry_after_s=retry_after_s)


def throttled(retry_after_s: float) -> Problem:
    """429: too many requests; the limit resets in `retry_after_s` seconds."""
    seconds = max(1, ceil(retry_after_s))
    detail = f"Request was throttled. Your rate limit resets in ~{seconds}s."
    return Problem(429, detail, retry_after_s=seconds)


def internal_error() -> Problem:
    """500: our fault; says nothing of the inside. Whether the request had an effect is not known."""
    return Problem(500, "The server met an unexpected error.", title="Internal server error", headers=_NO_RETRY)


def unavailable(retry_after_s: float, detail: str = "The service is not available right now; try again.") -> Problem:
    """503: the request had no effect and may be repeated after `retry_after_s` seconds."""
    return Problem(503, detail, title="Service unavailable", retry_after_s=max(1, ceil(retry_after_s)))


def storage_full(detail: str = "The server's storage is full; nothing was saved.") -> Problem:
    """507: no room until an operator makes some."""
    return Problem(507, detail, title="Insufficient storage", headers=_NO_RETRY)


def _size(limit_bytes: int) -> str:
    """Print a limit as Replicate does: "100MB" (or MiB), or exact bytes when it is not a whole number of either."""
    for unit, name in ((1_000_000, "MB"), (1 << 20, "MiB")):
        if limit_bytes % unit == 0:
            return f"{limit_bytes // unit}{name}"
    return f"{limit_bytes} bytes"
