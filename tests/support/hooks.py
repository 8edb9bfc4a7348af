"""A receiver of webhooks as a process of its own: python -m support.hooks PORT DIARY.

It appends each message to the diary, a line of JSON with its headers and body, before it answers. The path says what it
does: `/hang` never answers, `/status/500` answers with that status, everything else with 200.
"""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    """Takes messages."""

    protocol_version = "HTTP/1.1"
    diary: Path

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        entry = {"path": self.path, "headers": {name.lower(): value for name, value in self.headers.items()}}
        with self.diary.open("a") as diary:
            diary.write(json.dumps({**entry, "text": body.decode(), "body": json.loads(body)}) + "\n")
        if self.path.startswith("/hang"):
            time.sleep(3600)
        self.send_response(int(self.path.split("/")[2]) if self.path.startswith("/status/") else 200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def main() -> None:
    Handler.diary = Path(sys.argv[2])
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    server.daemon_threads = True
    server.serve_forever()


if __name__ == "__main__":
    main()
