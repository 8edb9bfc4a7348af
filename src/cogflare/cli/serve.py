"""`cogflare serve`: one server node, from the first start to a stop in order."""

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import click
import structlog
import uvicorn
import uvloop

from cogflare import telemetry
from cogflare.app import Runtime, build
from cogflare.engine.accounts import Created
from cogflare.settings import Settings, SettingsError, load
from cogflare.store.base import StoreError

log = structlog.get_logger()

_BACKLOG = 2048


class Server(uvicorn.Server):
    """uvicorn without its own signal handlers: a stop goes through the engine first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to `run`."""
        yield


def _config(settings: Settings, runtime: Runtime) -> uvicorn.Config:
    config = uvicorn.Config(
        runtime.app,
        loop="uvloop",
        http="httptools",
        ws="websockets-sansio",
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


@contextlib.contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Keep a second server off the same SQLite file: two would give the same prediction to two workers."""
    url = settings.database()
    if not url.startswith("sqlite:"):
        yield
        return
    path = Path(url.removeprefix("sqlite:///").partition("?")[0])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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


async def run(settings: Settings, ready_file: str | None = None) -> None:
    """Serve until SIGINT or SIGTERM; the second one ends at once."""
    listener = _listen(settings.host, settings.port)
    try:
        runtime = build(settings)
        config = _config(settings, runtime)
        await runtime.start()
        created = await runtime.accounts.ensure_admin(settings.admin_token)
    except BaseException:
        listener.close()
        raise
    server = Server(config)
    stopping: list[asyncio.Task[None]] = []

    def stop() -> None:
        if stopping:
            server.force_exit = True
            server.should_exit = True
        else:
            log.info("stopping; once more to stop now")
            stopping.append(asyncio.create_task(_stop(server, runtime)))

    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stop)
    url = _url(settings, listener)
    serving = asyncio.create_task(server.serve([listener]))
    _greet(url, created, settings)
    _ready(ready_file, url)
    await serving
    if not server.force_exit:
        await runtime.stop()


async def _stop(server: uvicorn.Server, runtime: Runtime) -> None:
    try:
        await runtime.engine.stop(runtime.settings.stop_s)
    finally:
        server.should_exit = True


@click.command()
@click.option("--config", type=click.Path(dir_okay=False), help="A TOML file with settings.")
@click.option("--data", help="Folder of the database and the files (default: ./cogflare-data).")
@click.option("--database-url", help="sqlite:///path or postgresql://… (default: SQLite in the data folder).")
@click.option("--host", help="Address to listen on (default: 127.0.0.1; 0.0.0.0 for all).")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on (default: 8000; 0 for any free one).")
@click.option("--public-url", help="Origin that clients reach, if it is another one (https://api.example.com).")
@click.option("--tls-cert", type=click.Path(exists=True, dir_okay=False), help="Certificate chain (PEM) for https.")
@click.option("--tls-key", type=click.Path(exists=True, dir_okay=False), help="Private key (PEM) of the certificate.")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="Logs for people or for machines.")
@click.option("--ready-file", type=click.Path(dir_okay=False), help="Write {url, pid} here once requests are taken.")
def serve(config: str | None, ready_file: str | None, **options: str | int | None) -> None:
    """Run a server: the API in front, workers dialling in behind it.

    The first start creates the data folder and an admin token, and shows how to use it. Every option is also a setting
    (COGFLARE_PORT=9000, or in the file given by --config).
    """
    try:
        settings = load(config, options)
        telemetry.configure(settings.log_format)
        with _alone(settings), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(settings, ready_file))
    except SettingsError as error:
        raise click.ClickException(str(error)) from error
    except StoreError as error:
        raise click.ClickException(f"the database cannot be used: {error}") from error
