"""Real S3 services on loopback: moto's server for the shape, and R2 as Cloudflare's own simulator has it.

R2 checks signatures, and needs Node: its packages are installed once, pinned, beside our own.
"""

import json
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Self

import httpx2

from cogflare.blobs.bucket import S3Options
from support.clients import NodeClient

BUCKET = "our-bucket"
_KEY_ID, _SECRET = "AKIAOFTHETESTS", "secret/of+the=tests"
_HERE = Path(__file__).parent


class BucketServer:
    """One service with a bucket; every test uses a prefix of its own in it."""

    def __init__(self) -> None:
        self.url = ""
        self._process: subprocess.Popen[str] | None = None
        self._reading: threading.Thread | None = None

    def start(self) -> Self:
        """Start the service; returns once it answers."""
        self._process = subprocess.Popen(
            self._command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self._process.stdout is not None
        self.url = self._endpoint(self._process.stdout)
        # A full pipe would stop the service.
        self._reading = threading.Thread(target=_read_all, args=[self._process.stdout], daemon=True)
        self._reading.start()
        self._prepare()
        return self

    def close(self) -> None:
        """Stop the service."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._end(self._process)
        if self._reading is not None:
            self._reading.join()

    def storage(self) -> str:
        """Return a setting `storage` that nobody else has."""
        return f"s3://{BUCKET}/{secrets.token_hex(8)}"

    def options(self, **changes: Any) -> S3Options:
        """Return how the bucket is reached."""
        given = {"access_key_id": _KEY_ID, "secret_access_key": _SECRET, "endpoint": self.url}
        return S3Options(**(given | changes))

    def settings(self) -> dict[str, Any]:
        """Return the settings of a server that uses a part of the bucket of its own."""
        given = {"s3_endpoint": self.url, "s3_access_key_id": _KEY_ID, "s3_secret_access_key": _SECRET}
        return given | {"storage": self.storage()}

    def _end(self, process: subprocess.Popen[str]) -> None:
        """Let the service end."""
        process.terminate()
        process.wait()

    def _prepare(self) -> None:
        """Make the bucket."""

    @abstractmethod
    def _command(self) -> Sequence[str]:
        """What starts the service."""

    @abstractmethod
    def _endpoint(self, said: IO[str]) -> str:
        """Find the endpoint in what the service says."""


class Moto(BucketServer):
    """The service that moto simulates. It takes any signature, unless it is told to ask who somebody is."""

    def _command(self) -> Sequence[str]:
        return [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]

    def _endpoint(self, said: IO[str]) -> str:
        return _first(said, r"Running on (http://\S+)")

    def _prepare(self) -> None:
        httpx2.put(f"{self.url}/{BUCKET}").raise_for_status()

    def restricted(self, actions: Sequence[str]) -> tuple[str, str]:
        """Return the keys of a user who may do only this with the bucket; from now on all are asked who they are."""
        name = secrets.token_hex(4)
        policy = {
            "Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Action": list(actions), "Resource": "*"}],
        }
        self._iam("CreateUser", UserName=name)
        self._iam("PutUserPolicy", UserName=name, PolicyName="rights", PolicyDocument=json.dumps(policy))
        made = self._iam("CreateAccessKey", UserName=name)
        return _first([made], r"<AccessKeyId>(.*?)<"), _first([made], r"<SecretAccessKey>(.*?)<")

    def ask_everybody(self, after: int) -> None:
        """Let this many more requests pass, then check the credentials and rights of each."""
        httpx2.post(f"{self.url}/moto-api/reset-auth", content=str(after)).raise_for_status()

    def _iam(self, action: str, **fields: str) -> str:
        scope = "AWS4-HMAC-SHA256 Credential=any/20260101/us-east-1/iam/aws4_request"
        headers = {"authorization": f"{scope}, SignedHeaders=host, Signature=any"}
        form = {"Action": action, "Version": "2010-05-08", **fields}
        answer = httpx2.post(f"{self.url}/", data=form, headers=headers)
        answer.raise_for_status()
        return answer.text


class Miniflare(BucketServer):
    """R2, as Cloudflare's simulator has it."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.mkdtemp(prefix="r2-")

    @staticmethod
    def is_possible() -> bool:
        """Whether Node and its installer are on this machine."""
        return NodeClient.is_possible()

    def close(self) -> None:
        """Stop the service, and remove what it has stored."""
        super().close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self, process: subprocess.Popen[str]) -> None:
        """Wait until it has ended, and a process of its own with it: that it does once its input ends."""
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            super()._end(process)

    def _command(self) -> Sequence[str]:
        home = _Packages("miniflare", {}).ready().home
        return ["node", str(_HERE / "miniflare" / "server.mjs"), str(home), self._folder, _KEY_ID, _SECRET, BUCKET]

    def _endpoint(self, said: IO[str]) -> str:
        return _first(said, r"(http://\S+)").rstrip("/") + "/cdn-cgi/local/r2/s3"


class _Packages(NodeClient):
    def __init__(self, name: str, environment: dict[str, str]) -> None:
        super().__init__(name, environment)
        self.source = _HERE / name


def _read_all(said: IO[str]) -> None:
    with said:
        while said.read(65536):
            pass


def _first(lines: Any, pattern: str) -> str:
    seen = []
    for line in lines:
        seen.append(line)
        found = re.search(pattern, line, re.DOTALL)
        if found:
            return found[1]
    raise AssertionError("".join(seen))
