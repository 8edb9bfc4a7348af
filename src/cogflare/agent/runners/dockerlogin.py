"""Credentials for registries, as `docker login` has left them on this machine; none of them is ever logged."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from cogflare.agent.runners.base import LogSink

_HUB: Final = "https://index.docker.io/v1/"
_HELPER: Final = re.compile(r"[0-9A-Za-z._-]+")
_HELPER_S: Final = 20.0


class _Entry(msgspec.Struct):
    auth: str = ""
    identitytoken: str = ""


class _Logins(msgspec.Struct, rename="camel"):
    auths: dict[str, _Entry] = {}
    creds_store: str = ""
    cred_helpers: dict[str, str] = {}


class _Secret(msgspec.Struct, rename="pascal"):
    """What a credential helper answers."""

    username: str = ""
    secret: str = ""


async def login_for(image: str, log: LogSink) -> dict[str, str] | None:
    """Return what the daemon is to show to the image's registry; None where nothing is known."""
    registry, slash, _ = image.partition("/")
    if not slash:
        return None  # an image of Docker Hub's own, which everybody may have
    if not ("." in registry or ":" in registry or registry == "localhost"):
        registry = _HUB
    file = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    try:
        logins = msgspec.json.decode(file.read_bytes(), type=_Logins)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log(f"{file} cannot be read, so images are pulled without a login: {error}\n")
        return None
    helper = logins.cred_helpers.get(registry) or logins.creds_store
    if helper and (found := await _ask(helper, registry)):
        return found
    entry = logins.auths.get(registry) or logins.auths.get(f"https://{registry}") or _Entry()
    return _known(entry)


def _known(entry: _Entry) -> dict[str, str] | None:
    if entry.identitytoken:
        return {"identitytoken": entry.identitytoken}
    with suppress(ValueError):
        user, colon, password = base64.b64decode(entry.auth, validate=True).decode().partition(":")
        if colon:
            return {"username": user, "password": password.rstrip("\0")}
    return None


async def _ask(helper: str, registry: str) -> dict[str, str] | None:
    """Ask the program that keeps the credentials; one that fails has none."""
    program = shutil.which(f"docker-credential-{helper}") if _HELPER.fullmatch(helper) else None
    if program is None:
        return None
    pipe, nowhere = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(program, "get", stdin=pipe, stdout=pipe, stderr=nowhere)
    try:
        async with asyncio.timeout(_HELPER_S):
            answer, _ = await process.communicate(registry.encode())
        found = msgspec.json.decode(answer, type=_Secret)
    except (TimeoutError, msgspec.DecodeError):
        return None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if found.username == "<token>":
        return {"identitytoken": found.secret}
    return {"username": found.username, "password": found.secret} if found.secret else None
