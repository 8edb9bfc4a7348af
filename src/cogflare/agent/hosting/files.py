"""The files of one run: inputs fetched from their URLs, outputs put to the upload URL, and a folder that goes with it.

Both lie with the worker on this machine. A worker that was killed is followed by another one under the same address, so
a connection to loopback that fails is tried again for as long as a model is kept for the next worker.
"""

import base64
import http.client
import mimetypes
import os
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path, PurePath
from typing import BinaryIO
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit

_AGAIN_S, _PAUSE_S = 600.0, 0.5
_TIMEOUT_S = 60.0
_LONGEST_NAME = 200  # bytes

# What a worker has started, this included, has the worker's folder for it here, which goes with it whatever happens.
_SCRATCH = os.environ.get("CHILD_OF_COGFLARE", "").rpartition("\n")[2]

# A proxy of the environment has no business on this machine.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class InputFailed(Exception):
    """An input file could not be had."""


class UploadFailed(Exception):
    """An output file did not reach the worker."""


class Files:
    """The files of the run ``run_id``. Leaving it removes what was fetched."""

    def __init__(self, upload_url: str, run_id: str) -> None:
        self._upload_url, self.run_id = upload_url.rstrip("/"), run_id
        self._folder: Path | None = None
        self._is_left = False
        self._owner = os.getpid()

    def __enter__(self) -> "Files":
        return self

    def __exit__(self, *_: object) -> None:
        self._is_left = True
        if self._folder is not None and os.getpid() == self._owner:  # a fork has the run of its parent
            shutil.rmtree(self._folder, ignore_errors=True)

    def fetch(self, url: str) -> Path:
        """Return a file with the content at the URL, under the URL's file name; raises `InputFailed`."""
        scheme = url.partition(":")[0].lower()
        if scheme == "data":
            return self._write_data(url)
        if scheme not in ("http", "https"):
            raise InputFailed("it is no URL of the kinds http, https and data")
        try:
            path = self._place(unquote(urlsplit(url).path).rsplit("/", 1)[-1])
            with _open(url) as response, path.open("wb") as file:
                shutil.copyfileobj(response, file)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise InputFailed(f"it could not be fetched: {error}") from error
        return path

    def store(self, path: PurePath) -> str:
        """Upload a file and return the URL that stands for it; raises `UploadFailed`."""
        content_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        if not self._upload_url:
            content = base64.b64encode(Path(path).read_bytes()).decode()
            return f"data:{content_type};base64,{content}"
        url = f"{self._upload_url}/{quote(path.name, safe='')}"
        headers = {"content-type": content_type, "x-prediction-id": self.run_id}
        with Path(path).open("rb") as file:
            headers["content-length"] = str(os.fstat(file.fileno()).st_size)
            try:
                request = urllib.request.Request(url, file, headers, method="PUT")  # noqa: S310
                with _open(request, file) as response:
                    location: str = response.headers.get("location") or url
            except (OSError, http.client.HTTPException) as error:
                raise UploadFailed(f"Failed to upload output {path.name}: {error}") from error
        return location.partition("?")[0]

    def _write_data(self, url: str) -> Path:
        head, comma, text = url[5:].partition(",")
        content_type, *parameters = head.split(";")
        try:
            if not comma:
                raise ValueError("a data URL without a comma")
            content = unquote_to_bytes(text)
            if "base64" in parameters:
                content = base64.b64decode(content, validate=True)
        except ValueError as error:
            raise InputFailed(f"it is no good data URL: {error}") from error
        path = self._place("file" + (mimetypes.guess_extension(content_type or "text/plain") or ""))
        path.write_bytes(content)
        return path

    def _place(self, name: str) -> Path:
        """Return a path in a new folder, so that files of one name do not meet."""
        if self._is_left:  # a canceled run does not wait for its thread
            raise InputFailed("the run is over")
        if self._folder is None:
            place = _SCRATCH if os.path.isdir(_SCRATCH) else None
            self._folder = Path(tempfile.mkdtemp(prefix="cogflare-run-", dir=place))
        name = name.replace("/", "_").replace("\0", "_")
        while len(name.encode("utf-8", "replace")) > _LONGEST_NAME:
            name = name[1:]  # what a file is tells its end
        return Path(tempfile.mkdtemp(dir=self._folder)) / (name if name.strip(".") else "file")


def _open(request: str | urllib.request.Request, body: BinaryIO | None = None) -> http.client.HTTPResponse:
    """Open a URL; a worker that is not there now is waited for, and the request's body sent again."""
    url = request if isinstance(request, str) else request.full_url
    is_near = urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost")
    deadline = time.monotonic() + (_AGAIN_S if is_near else 0)
    while True:
        try:
            opening = _DIRECT.open if is_near else urllib.request.urlopen
            return opening(request, timeout=_TIMEOUT_S)  # type: ignore[no-any-return]
        except urllib.error.HTTPError:
            raise
        except OSError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_PAUSE_S)
            if body is not None:
                body.seek(0)
