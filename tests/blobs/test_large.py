"""Large blobs: what goes in and comes out is never whole in memory."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from cogflare.blobs.bucket import S3Options
from support.buckets import BucketServer

_MOST_GROWTH = 50_000_000
_CHILD = Path(__file__).with_name("large.py")


def grown(folder: Path, storage: str, options: S3Options, size: int) -> int:
    command = [sys.executable, str(_CHILD), str(folder), storage, str(size)]
    text = msgspec.json.encode(options).decode()
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found: int = json.loads(done.stdout)["grown"]
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads its memory from /proc")
def test_two_gigabytes_through_a_folder(tmp_path: Path) -> None:
    options = S3Options(access_key_id="", secret_access_key="")
    assert grown(tmp_path, "", options, 2 << 30) < _MOST_GROWTH


@pytest.mark.skipif(sys.platform != "linux", reason="reads its memory from /proc")
def test_a_quarter_of_a_gigabyte_through_a_bucket(miniflare: BucketServer, tmp_path: Path) -> None:
    assert grown(tmp_path, miniflare.storage(), miniflare.options(), 256 << 20) < _MOST_GROWTH
