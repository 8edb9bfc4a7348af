"""A stand-in for the ``runpod`` package where it is not installed: what handlers of its documentation import.

runpod             serverless, RunPodLogger, __version__
runpod.serverless  start, progress_update, modules.rp_logger, utils: rp_validator, rp_cleanup, rp_cuda
"""

import json
import os
import shutil
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

_LEVELS = ("NOTSET", "TRACE", "DEBUG", "INFO", "WARN", "ERROR", "TIP")


class RunPodLogger:
    """Logs lines in RunPod's shape; ``RUNPOD_LOG_LEVEL`` says from which level on."""

    def __init__(self) -> None:
        self.level = os.environ.get("RUNPOD_LOG_LEVEL", os.environ.get("RUNPOD_DEBUG_LEVEL", "DEBUG")).upper()

    def set_level(self, new_level: str) -> None:
        """Log from this level on."""
        self.level = new_level.upper()

    def log(self, message: object, message_level: str = "INFO", job_id: str | None = None) -> None:
        """Log a message."""
        least = _LEVELS.index(self.level) if self.level in _LEVELS else 0
        if _LEVELS.index(message_level) >= least:
            print(f"{message_level.ljust(7)}| {f'{job_id} | ' if job_id else ''}{message}", flush=True)

    def trace(self, message: object, request_id: str | None = None) -> None:
        """Log a message for those who follow every step."""
        self.log(message, "TRACE", request_id)

    def debug(self, message: object, request_id: str | None = None) -> None:
        """Log a message for those who look for errors."""
        self.log(message, "DEBUG", request_id)

    def info(self, message: object, request_id: str | None = None) -> None:
        """Log a message."""
        self.log(message, "INFO", request_id)

    def warn(self, message: object, request_id: str | None = None) -> None:
        """Log a warning."""
        self.log(message, "WARN", request_id)

    def error(self, message: object, request_id: str | None = None) -> None:
        """Log an error."""
        self.log(message, "ERROR", request_id)

    def tip(self, message: object) -> None:
        """Log advice."""
        self.log(message, "TIP")


def validate(raw_input: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Check an input against a schema of RunPod's: ``{"errors": […]}`` or ``{"validated_input": {…}}``."""
    rules = {name: json.loads(rule) if isinstance(rule, str) else rule for name, rule in schema.items()}
    errors = [f"Unexpected input. {name} is not a valid input option." for name in raw_input if name not in rules]
    checked = dict(raw_input)
    for name, rule in rules.items():
        errors += _absent(name, rule, checked) if name not in raw_input else []
        errors += _wrong(name, rule, checked)
    return {"errors": errors} if errors else {"validated_input": checked}


def _absent(name: str, rule: dict[str, Any], checked: dict[str, Any]) -> list[str]:
    if rule.get("required", True):
        return [f"{name} is a required input."]
    if "default" not in rule:
        return [f"Schema error, missing default value for {name}."]
    checked[name] = rule["default"]
    return []


def _wrong(name: str, rule: dict[str, Any], checked: dict[str, Any]) -> list[str]:
    if "type" not in rule:
        return [f"Schema error, missing type for {name}."]
    found: list[str] = []
    value: Any = checked.get(name)
    if name in checked:
        if rule["type"] is float and type(value) in (int, float):
            checked[name] = value = float(value)
        if "default" in rule and isinstance(value, type(rule["default"])):
            return []  # RunPod looks no further either
        if not isinstance(value, rule["type"]):
            found.append(f"{name} should be {rule['type']} type, not {type(value)}.")
    if "constraints" in rule and not rule["constraints"](value):
        found.append(f"{name} does not meet the constraints.")
    return found


def clean(folder_list: Iterable[str] | None = None) -> None:
    """Remove the folders that jobs leave in the current one, and those named."""
    for folder in ("input_objects", "output_objects", "job_files", *(folder_list or ())):
        shutil.rmtree(folder, ignore_errors=True)


def is_available() -> bool:
    """Whether a GPU of NVIDIA's is there."""
    return shutil.which("nvidia-smi") is not None


def install() -> None:
    """Let the package be imported."""
    logger = {"RunPodLogger": RunPodLogger}
    utils = {"validate": validate, "clean": clean}
    _module("runpod", __version__="0.0.0", __path__=[], api_key=None, **logger)
    _module("runpod.serverless", __path__=[], log=RunPodLogger(), **logger)
    _module("runpod.serverless.modules", __path__=[])
    _module("runpod.serverless.modules.rp_logger", **logger)
    _module("runpod.serverless.utils", __path__=[], **utils)
    _module("runpod.serverless.utils.rp_validator", validate=validate)
    _module("runpod.serverless.utils.rp_cleanup", clean=clean)
    _module("runpod.serverless.utils.rp_cuda", is_available=is_available)


def _module(name: str, **content: Any) -> None:
    module = ModuleType(name, "A stand-in: runpod is not installed.")
    module.__dict__.update(content)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)
