"""Who is calling: a token in `Authorization` (Bearer or Token) or the header of 2022, checked before any routing."""

from starlette.datastructures import Headers

from cogflare.api.dialect import HEADER
from cogflare.api.problems import Problem, forbidden, unauthenticated
from cogflare.engine.accounts import Accounts
from cogflare.store.catalog import Caller

_MAX_SECRET = 512
_CLIENTS = frozenset({"api", "admin"})


def secret_of(headers: Headers) -> str | None:
    """Return the token of a request; None where it passes none."""
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    if scheme.lower() not in ("bearer", "token"):
        secret = headers.get(HEADER, "")
    return secret.strip()[:_MAX_SECRET] or None


async def authenticate(accounts: Accounts, headers: Headers) -> Caller:
    """Return the caller; raises a 401 `Problem`."""
    secret = secret_of(headers)
    caller = None if secret is None else await accounts.caller(secret)
    if caller is None:
        raise unauthenticated(token_given=secret is not None)
    return caller


def authorize(caller: Caller, is_worker_path: bool) -> None:
    """Keep workers to the worker endpoints and clients to the rest; raises a 403 `Problem`."""
    problem: Problem | None = None
    if is_worker_path and caller.kind != "worker":
        problem = forbidden("This is not a worker token; make one with: cogflare tokens create --kind worker")
    elif not is_worker_path and caller.kind not in _CLIENTS:
        problem = forbidden("This is a worker token; make one for the API with: cogflare tokens create --kind api")
    if problem is not None:
        raise problem
