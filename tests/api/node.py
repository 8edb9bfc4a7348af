"""A whole node behind an HTTP client: the real application on a real store, with rig workers in place of sockets."""

from pathlib import Path
from typing import Any

import httpx2

from cogflare.api import admin, catalog, files, legacyfiles, predictions, sse, uploads, work
from cogflare.api.context import Api
from cogflare.api.gateway import Gateway
from cogflare.api.legacygateway import LegacyGateway
from cogflare.api.origin import TrustedProxies
from cogflare.api.routing import Application, table
from cogflare.blobs.base import BlobStore
from cogflare.blobs.local import LocalBlobStore
from cogflare.engine.files import Files
from cogflare.engine.legacyfiles import LegacyFiles
from cogflare.engine.legacyruns import Surroundings, Times
from cogflare.protocol.messages import Assign
from cogflare.store.base import Database
from engine.rig import Rig, RigWorker

BASE = "https://api.example.net"
MAX_FILE_BYTES = 3_000_000
MAX_FILES = 20
MAX_UPLOAD_BYTES = 2_000_000
MAX_INLINE_BYTES = 10_000
MAX_RESULT_BYTES = 2_000_000
OLD_TIMES = Times(grace_s=0.3, twin_s=0.2, busy_s=0.2)


class Node(Rig):
    """One node and clients of it."""

    def __init__(self, db: Database, folder: Path, blobs: BlobStore | None = None) -> None:
        self.folder = folder / "files"
        blobs = blobs or LocalBlobStore(self.folder)
        super().__init__(db, blobs=blobs, max_upload_bytes=MAX_UPLOAD_BYTES, max_inline_bytes=MAX_INLINE_BYTES)
        assert self.inputs is not None
        self.files = Files(db, blobs, self.clock, MAX_FILE_BYTES, MAX_FILES)
        self.api = api = Api(
            self.predictions,
            self.catalog,
            self.accounts,
            self.fleet,
            self.files,
            db,
            self.clock,
            None,
            TrustedProxies(),
            1_000_000,
            self.repeats,
        )
        old = LegacyFiles(
            db, blobs, self.clock, self.files, max_files=3, max_bytes=MAX_FILE_BYTES + 10, max_inline=MAX_INLINE_BYTES
        )
        around = Surroundings(self.ground, self.files, old, OLD_TIMES)
        routes = [
            *legacyfiles.routes(api, old),
            *predictions.routes(api),
            *sse.routes(api, self.streams),
            *files.routes(api),
            *uploads.routes(api, self.inputs.uploads, self.inputs.downloads),
            *work.routes(api, MAX_RESULT_BYTES),
            *catalog.routes(api),
            *admin.routes(api),
        ]
        self.app = app = Application(api, table(routes), Gateway(self.fleet), LegacyGateway(api, around))
        self.http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url=BASE)
        self._tokens: dict[tuple[str, str], str] = {}

    async def token(self, account: str, kind: str = "api") -> str:
        """Return a token of an account (made if new)."""
        key = (account, kind)
        if key not in self._tokens:
            created = await self.accounts.create(account, kind, f"{account}'s {kind} token")
            assert created is not None
            self._tokens[key] = created.secret
        return self._tokens[key]

    async def call(
        self, method: str, path: str, account: str = "ada", kind: str = "api", **options: Any
    ) -> httpx2.Response:
        """Send a request as an account."""
        headers = {"Authorization": f"Bearer {await self.token(account, kind)}", **options.pop("headers", {})}
        return await self.http.request(method, path, headers=headers, **options)

    async def work(self, worker: RigWorker, method: str, path: str, account: str = "ada", **options: Any) -> Any:
        """Send a request as an agent does."""
        headers = {"Cogflare-Worker": worker.end.worker, **options.pop("headers", {})}
        return await self.call(method, path, account, "worker", headers=headers, **options)

    async def running(self) -> tuple[RigWorker, Assign]:
        """Return a new worker of ada that has begun to run a prediction of hers."""
        worker = await self.worker()
        await self.create(await self.caller("ada"))
        assigned = await worker.next()
        await worker.start(assigned)
        return worker, assigned

    async def file(
        self, worker: RigWorker, assigned: Assign, content: bytes, name: str = "out.png", kind: str = "image/png"
    ) -> str:
        """Send an output file as an agent does, and return the path under which it is served."""
        order = {"filename": name, "content_type": kind, "size": len(content)}
        ordered = await self.work(worker, "POST", f"{attempt_path(assigned)}/files", json=order)
        assert ordered.status_code == 201, ordered.text
        target = ordered.json()["upload"]
        sent = await self.work(worker, target["method"], f"/{target['url']}", content=content)
        assert sent.status_code == 204, sent.text
        return str(ordered.json()["reference"]).removeprefix("cogflare-file:")


def attempt_path(assigned: Assign) -> str:
    """Return where what belongs to an attempt is sent."""
    return f"/worker/v1/attempts/{assigned.prediction}/{assigned.attempt}"
