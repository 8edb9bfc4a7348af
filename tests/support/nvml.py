"""A library in the place of NVIDIA's, which says what a test lets it say; NVIDIA's own Python package loads it."""

import shutil
import subprocess
from pathlib import Path

import pytest

_SOURCE = Path(__file__).with_suffix(".c")

TWO_QUADROS = """driver 535.129.03
cuda 12020
gpu GPU-c7b57be0-94ff-d352-a59b-d0ee00aeed43 8192 8191 Quadro RTX 4000
gpu GPU-d6de6afc-bdfe-75c4-5273-0544439153fc 8192 8191 Quadro RTX 4000
"""
"""As nvidia-smi showed it in akash-network/provider-configs#12."""

GAMER = """driver 550.107.02
cuda 12040
gpu GPU-00000000-0000-0000-0000-000000004090 24564 24563 NVIDIA GeForce RTX 4090 D
"""
"""As nvidia-smi showed it in manycore-research/SpatialLM#28, which had blotted out the UUID."""

DIVIDED = """driver 450.203.03
cuda 11000
gpu GPU-36c9561a-02ef-5c4d-3733-f0a56c42dc45 40537 40000 A100-SXM4-40GB
part MIG-00000000-0000-0000-0000-000000000001 19968 19000 A100-SXM4-40GB MIG 3g.20gb
part MIG-00000000-0000-0000-0000-000000000002 4864 4861 A100-SXM4-40GB MIG 1g.5gb
"""
"""Driver, GPU and its UUID are those of NVIDIA/k8s-device-plugin#343; the instances are named as NVIDIA's guide to MIG
does, and their memory is about what the names say."""


class Library:
    """The library in a folder of its own, and what it says."""

    def __init__(self, folder: Path) -> None:
        self._record = folder / "nvml.txt"
        self._folder = folder
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler: what NVIDIA's library says of GPUs is not tested here")
        library = folder / "libnvidia-ml.so.1"
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, _SOURCE], check=True, timeout=60
        )

    def says(self, record: str) -> None:
        """Let it say this from now on, to whoever starts it."""
        part = self._record.with_suffix(".part")
        part.write_text(record)
        part.replace(self._record)

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a process that is to find it."""
        return {"LD_LIBRARY_PATH": str(self._folder), "NVML_RECORD": str(self._record)}
