"""A registry of images on loopback, with one image in it, for pulls; a Docker daemon needs no certificate there."""

import base64
import hashlib
import io
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG = "application/vnd.docker.container.image.v1+json"
_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_BINARY = "application/octet-stream"


class Registry:
    """Serves an image as `repository`, as a context; with a `login`, ``user:password``, to nobody else."""

    repository = "acme/pulled"

    def __init__(self, document: bytes, layer: Path, login: str = "") -> None:
        config, blob = _digest(document), f"sha256:{_sum(layer)}"
        described = {"mediaType": _LAYER, "digest": blob, "size": layer.stat().st_size}
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": {"mediaType": _CONFIG, "digest": config, "size": len(document)},
            "layers": [described],
        }
        self._manifest = json.dumps(manifest).encode()
        self.digest = _digest(self._manifest)
        self._blobs: dict[str, bytes | Path] = {config: document, blob: layer}
        self._asked_for = f"Basic {base64.b64encode(login.encode()).decode()}" if login else ""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_port}"
        self.image = f"{self.address}/{self.repository}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _find(self, path: str) -> tuple[bytes | Path, str] | None:
        if path == "/v2/":
            return b"{}", "application/json"
        kind, _, name = path.removeprefix(f"/v2/{self.repository}/").partition("/")
        if kind == "manifests" and name in ("latest", self.digest):
            return self._manifest, _MANIFEST
        if kind == "blobs" and name in self._blobs:
            return self._blobs[name], _BINARY
        return None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                if registry._asked_for not in ("", self.headers.get("Authorization")):
                    return self._answer(401, b"{}", "application/json", {"WWW-Authenticate": 'Basic realm="tests"'})
                if (found := registry._find(self.path)) is None:
                    return self._answer(404, b"{}", "application/json", {})
                told = {"Docker-Content-Digest": registry.digest} if found[1] == _MANIFEST else {}
                return self._answer(200, *found, told)

            def _answer(self, status: int, content: bytes | Path, kind: str, headers: dict[str, str]) -> None:
                self.send_response(status)
                size = content.stat().st_size if isinstance(content, Path) else len(content)
                for name, value in {"Content-Type": kind, "Content-Length": str(size), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as body:
                        shutil.copyfileobj(body, self.wfile)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _sum(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
