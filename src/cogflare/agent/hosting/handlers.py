"""A RunPod handler file as a model: run as it is, until it gives its handler to ``runpod.serverless.start``.

The call of ``start`` does not return, as at RunPod. The input is any object; what the handler's answer means is what
RunPod makes of it. Without the ``runpod`` package a stand-in takes its place, which has what its examples use.
"""

import asyncio
import importlib
import json
import runpy
import sys
from collections.abc import Callable
from inspect import isawaitable
from pathlib import Path
from typing import Any

from . import standin
from .checking import Schema
from .document import document
from .files import Files
from .model import Failed, Model, SetupError, awaited, is_async, is_generator

Ready = Callable[[Model], None]


def run(path: str, on_ready: Ready) -> None:
    """Run the file; its handler is given to ``on_ready``. Raises `SetupError` and what the file raises."""
    file = Path(path).resolve()
    if not file.is_file():
        raise SetupError(f"there is no file {path}")
    sys.path.insert(0, str(file.parent))
    sys.argv = [str(file)]
    serverless = _serverless()
    checks: list[Callable[[], Any]] = []

    def start(config: dict[str, Any]) -> None:
        model = describe(config)
        for check in checks:
            _make(check)
        on_ready(model)

    def register_fitness_check(check: Callable[[], Any]) -> Callable[[], Any]:
        checks.append(check)
        return check

    serverless.start = start
    serverless.progress_update = progress_update
    serverless.register_fitness_check = register_fitness_check
    runpy.run_path(str(file), run_name="__main__")
    raise SetupError(f"{file.name} has ended without a call of runpod.serverless.start")


def describe(config: object) -> Model:
    """Return the handler of a configuration as a model; raises `SetupError`."""
    handler = config.get("handler") if isinstance(config, dict) else None
    if not callable(handler):
        raise SetupError('runpod.serverless.start is given no {"handler": function}')
    yields = is_generator(handler)
    output: Schema = {"type": "array", "items": {}, "x-cog-array-type": "iterator"} if yields else {}
    given: Schema = {"properties": {}, "type": "object", "title": "Input", "additionalProperties": True}
    about = (getattr(handler, "__doc__", None) or "").strip()

    def bind(run_id: str, value: dict[str, Any], files: Files) -> Callable[[], Any]:
        del files
        return lambda: handler({"id": run_id, "input": value})

    return Model(document(given, output, {}, about), is_async(handler), yields, bind, settle)


def settle(result: Any) -> Any:
    """Return the output that RunPod would make of a handler's result; raises `Failed` where it would say so."""
    if not isinstance(result, dict):
        return result
    error = result.get("error")
    if error:
        raise Failed(error if isinstance(error, str) else json.dumps(error, default=str))
    output = {key: value for key, value in result.items() if key not in ("error", "refresh_worker")}
    return output or None


def progress_update(job: dict[str, Any], progress: Any) -> None:
    """Log how far a job has come."""
    del job
    print(progress if isinstance(progress, str) else json.dumps(progress, default=str), flush=True)


def _make(check: Callable[[], Any]) -> None:
    """Make a check of the machine, as RunPod does before the first job; raises what it raises."""
    result = check()
    if isawaitable(result):
        asyncio.run(awaited(result))


def _serverless() -> Any:
    try:
        importlib.import_module("runpod")
    except ModuleNotFoundError as error:
        if error.name != "runpod":  # it is there, and lacks something
            raise
        standin.install()
        need = "install runpod there if the handler uses more of it"
        print(f"runpod is not installed for {sys.executable}: a stand-in takes its place; {need}")
    return importlib.import_module("runpod.serverless")
