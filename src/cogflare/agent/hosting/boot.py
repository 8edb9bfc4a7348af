"""Starts the host: `python boot.py MODE TARGET --port P [--upload-url URL] [--slots N]`.

MODE is `function` with a target `module:name`, found from the current folder, or `runpod` with the path of a handler
file. The package is loaded by its place under a name of its own, so that its modules are in no model's way.
"""

import argparse
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

_PACKAGE = "cogflare_host"
_FOLDER = Path(__file__).resolve().parent


def main() -> None:
    """Run the front, or below it the model's process."""
    if sys.path and Path(sys.path[0]).resolve() == _FOLDER:
        del sys.path[0]
    options = _options()
    _load_package()
    if options.model_fd is None:
        _module("app").serve(__file__, options)
    else:
        _module("work").serve(options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="boot.py")
    parser.add_argument("mode", choices=("function", "runpod"))
    parser.add_argument("target")
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--upload-url", default="")
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--model-fd", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def _load_package() -> None:
    spec = importlib.util.spec_from_file_location(
        _PACKAGE, _FOLDER / "__init__.py", submodule_search_locations=[str(_FOLDER)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_PACKAGE] = module
    spec.loader.exec_module(module)


def _module(name: str) -> Any:
    return importlib.import_module(f"{_PACKAGE}.{name}")


if __name__ == "__main__":
    main()
