"""The name of the GPU: what the tool says, and nothing where there is none or it fails."""

import time
from pathlib import Path

import pytest

from cogflare.agent import gpu
from cogflare.agent.gpu import gpu_name

pytestmark = pytest.mark.anyio


def tool(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a tool of NVIDIA's name on the path."""
    file = folder / "nvidia-smi"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("echo NVIDIA A40", "NVIDIA A40"),
        ("echo ' NVIDIA  A40 '; echo NVIDIA A40", "2 x NVIDIA A40"),
        ("echo NVIDIA A40; echo NVIDIA H100", "NVIDIA A40, NVIDIA H100"),
        ("", None),
        ("echo 'no devices were found'; exit 6", None),
        ('[ "$1 $2" = "--query-gpu=name --format=csv,noheader" ] && echo NVIDIA A40', "NVIDIA A40"),
    ],
)
async def test_what_the_tool_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, name: str | None
) -> None:
    tool(tmp_path, script, monkeypatch)
    assert await gpu_name() == name


async def test_a_machine_without_the_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await gpu_name() is None
    (tmp_path / "nvidia-smi").write_text("no program")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert await gpu_name() is None


async def test_a_tool_that_never_stops_talking_is_not_listened_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool(tmp_path, "yes NVIDIA A40 | head -c 1000000", monkeypatch)
    found = await gpu_name()
    assert found is not None
    assert len(found) < 5_000


async def test_a_tool_that_hangs_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path, "exec sleep 60", monkeypatch)
    monkeypatch.setattr(gpu, "_TIMEOUT_S", 0.2)
    start = time.monotonic()
    assert await gpu_name() is None
    assert time.monotonic() - start < 10
