"""`cogflare serve`: one server node, from the first start to a stop in order."""

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import click
import msgspec
import structlog
import uvicorn
import uvloop

from cogflare import telemetry
from cogflare.app import Runtime, build
from cogflare.cli.farewell import Farewell
from cogflare.cli.httpsocket import HttpSocket
from cogflare.cli.linksocket import LinkSocket
from cogflare.cli.openfiles import raise_limit
from cogflare.cli.optionvalues import Whole
from cogflare.domain.clock import Clock
from cogflare.engine.accounts import Created
from cogflare.settings import Settings, SettingsError, load
from cogflare.store.base import SchemaTooNew, StoreError

log = structlog.get_logger()

_BACKLOG = 2048
_CLOSE_S = 5.0  # for a store that has nothing more to do
_KEEP_ALIVE_S = 75  # longer than clients keep an idle connection: who closes it should be who uses it


class Server(uvicorn.Server):
    """uvicorn without its own signal handlers: a stop goes through the engine first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to `run`."""
        yield


def _config(settings: Settings, app: Farewell) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=HttpSocket,
        ws=LinkSocket,
        interface="asgi3",
        # A worker of 2022 answers no pings while its model runs; heartbeats of our own decide who is away.
        ws_ping_interval=None,
        ws_ping_timeout=None,
        ws_per_message_deflate=False,
        ws_max_size=4_000_000,
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_level="warning",
        log_config=None,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, int(settings.stop_s)),
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    try:
        config.load()
    except OSError as error:  # an error of TLS is one
        raise SettingsError(f"tls_cert and tls_key (PEM, a pair) cannot be used: {error.strerror or error}") from error
    return config


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        option = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise SettingsError(f"cannot listen on {host}:{port}: {error.strerror}; choose another {option}") from error
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener


def _inherit(fd: int) -> socket.socket:
    """Take over a socket on which whoever started this process listens, and goes on to when this process ends."""
    try:
        listener = socket.socket(fileno=fd)
        listens = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise SettingsError(f"--fd {fd} is no socket: {error.strerror}") from error
    if listener.family not in (socket.AF_INET, socket.AF_INET6) or not listens:
        listener.detach()
        raise SettingsError(f"--fd {fd} is no TCP socket that listens")
    listener.set_inheritable(False)
    listener.setblocking(False)
    return listener


@contextlib.contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Keep a second server off the same SQLite file: two would give the same prediction to two workers."""
    url = settings.database()
    if not url.startswith("sqlite:"):
        yield
        return
    path = Path(url.removeprefix("sqlite:///").partition("?")[0])
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = Path(f"{path}.lock").open("a")  # noqa: SIM115 - closed below
    except OSError as error:
        raise SettingsError(f"cannot write in {path.parent} ({error.strerror}); choose another --data") from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SettingsError(f"another server runs on {path}; stop it, or choose another --data") from error
        yield


def _url(settings: Settings, listener: socket.socket) -> str:
    scheme = "https" if settings.tls_cert else "http"
    host = settings.host if settings.host not in ("0.0.0.0", "::") else "127.0.0.1"  # noqa: S104 - compared, not bound
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


def _greet(url: str, created: Created | None, settings: Settings) -> None:
    is_everywhere = settings.host in ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
    click.echo(f"Cogflare listens on {url}" + (" and this machine's other addresses" if is_everywhere else ""))
    if created is None or settings.admin_token is not None:
        return
    url = (settings.public_url or url).rstrip("/")
    click.echo(
        f"\nAdmin token, shown this once (only its hash is stored):\n\n    {created.secret}\n\n"
        "Use it like this:\n\n"
        f"    export COGFLARE_SERVER={url} COGFLARE_TOKEN={created.secret}\n"
        "    cogflare tokens create --kind worker --name my-gpu     # then, on the machine with the model:\n"
        f"    COGFLARE_WORKER_TOKEN=cfw_… cogflare worker FOLDER --server {url} --model me/my-model\n"
        "    cogflare predict me/my-model -i prompt=hello\n"
    )


def _ready(path: str | None, url: str) -> None:
    if path is not None:
        temporary = Path(f"{path}.new")
        temporary.write_text(json.dumps({"url": url, "pid": os.getpid()}))
        temporary.rename(path)


async def run(
    settings: Settings,
    listener: socket.socket,
    ready_file: str | None = None,
    clock: Clock | None = None,
    *,
    is_inherited: bool = False,
) -> None:
    """Serve on a socket that listens, until SIGINT or SIGTERM; the second one ends the process at once."""
    runtime = build(settings, clock)
    farewell = Farewell(runtime.app)
    config = _config(settings, farewell)
    await runtime.start()
    created = await runtime.accounts.ensure_admin(settings.admin_token)
    server = Server(config)
    stopping: list[asyncio.Task[None]] = []

    def stop(number: signal.Signals) -> None:
        if stopping:
            log.warning("stopped at once")
            _leave(128 + number)
        log.info("stopping; once more to stop now", within_s=settings.stop_s)
        stopping.append(asyncio.create_task(_stop(server, runtime, farewell, is_inherited)))

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    url = _url(settings, listener)
    serving = asyncio.create_task(server.serve([listener]))
    _greet(url, created, settings)
    _ready(ready_file, url)
    await serving
    try:
        async with asyncio.timeout(_CLOSE_S):
            await runtime.stop()
    except TimeoutError:
        log.error("the store does not close; what was answered is in it")
        _leave(1)


async def _stop(server: uvicorn.Server, runtime: Runtime, farewell: Farewell, is_inherited: bool) -> None:
    """Stop the engine, then let the server end; what is still under way when the limit is reached is cut off."""
    now, limit_s = asyncio.get_running_loop().time, runtime.settings.stop_s
    due = now() + limit_s
    farewell.begin()
    if is_inherited:
        # Who connects from now on waits for the next server.
        for accepting in server.servers:
            accepting.close()
    try:
        async with asyncio.timeout(limit_s + _CLOSE_S):
            await runtime.engine.stop(limit_s)
            await farewell.linger(server)
    except TimeoutError:
        log.error("the store does not answer; live data is not saved, the agents have it")
    finally:
        server.config.timeout_graceful_shutdown = max(1, int(due - now()))
        server.should_exit = True


def _leave(status: int) -> NoReturn:
    """End as a crash does, whatever hangs: nothing that was answered depends on what would come after this."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def host(settings: Settings, ready_file: str | None = None, clock: Clock | None = None, fd: int | None = None) -> None:
    """Run a node until it is stopped, alone on its SQLite file; `clock` stands for the machine's own."""
    telemetry.configure(settings.log_format)
    raise_limit()
    if fd is None:
        listener = _listen(settings.host, settings.port)
    else:
        listener = _inherit(fd)
        name, port = listener.getsockname()[:2]
        settings = msgspec.structs.replace(settings, host=name, port=port)
    # The port comes first: a start that fails on it makes no folder and takes no lock.
    with listener, _alone(settings), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(settings, listener, ready_file, clock, is_inherited=fd is not None))


@click.command()
@click.option("--config", type=click.Path(dir_okay=False), help="A TOML file with settings.")
@click.option("--data", help="Folder of the database and the files (default: ./cogflare-data).")
@click.option("--database-url", help="sqlite:///path or postgresql://… (default: SQLite in the data folder).")
@click.option("--host", help="Address to listen on (default: 127.0.0.1; 0.0.0.0 for all).")
@click.option("--port", type=Whole(0, 65535), help="Port to listen on (default: 8000; 0 for any free one).")
@click.option("--public-url", help="Origin that clients reach, if it is another one (https://api.example.com).")
@click.option("--tls-cert", type=click.Path(exists=True, dir_okay=False), help="Certificate chain (PEM) for https.")
@click.option("--tls-key", type=click.Path(exists=True, dir_okay=False), help="Private key (PEM) of the certificate.")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="Logs for people or for machines.")
@click.option("--ready-file", type=click.Path(dir_okay=False), help="Write {url, pid} here once requests are taken.")
@click.option(
    "--fd", type=Whole(0), help="Listen on this open socket instead (systemd: 3); restarts then refuse nobody."
)
def serve(config: str | None, ready_file: str | None, fd: int | None, **options: str | int | None) -> None:
    """Run a server: the API in front, workers dialling in behind it.

    The first start creates the data folder and an admin token, and shows how to use it. Every option is also a setting
    (COGFLARE_PORT=9000, or in the file given by --config).

    SIGTERM or Ctrl-C stops it in order, within the setting stop_s, and ends it with 0; predictions that run go on at
    their workers meanwhile. A second signal stops it at once, with 128 and the signal's number.
    """
    try:
        host(load(config, options), ready_file, fd=fd)
    except SettingsError as error:
        raise click.ClickException(str(error)) from error
    except SchemaTooNew as error:
        newer = "the database was written by a newer Cogflare; start that one again, or go back to an older backup"
        raise click.ClickException(f"{newer} ({error})") from error
    except StoreError as error:
        raise click.ClickException(f"the database cannot be used: {error}") from error
