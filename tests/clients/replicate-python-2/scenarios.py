"""Replicate's client for Python, version 2, called as its users call it; prints what a scenario saw as JSON."""

import json
import sys
import time
from base64 import b64encode
from pathlib import Path
from typing import Any

import replicate
from replicate.exceptions import ModelError, NotFoundError
from replicate.lib._files import FileOutput
from replicate.lib._predictions_use import get_path_url

client = replicate.Replicate()


def seen(value: Any) -> Any:
    """Return a value with every file in it as what can be read from it."""
    if isinstance(value, FileOutput):
        content = None if value.url.startswith("data:") else b64encode(value.read()).decode()
        return {"url": value.url, "content": content}
    if url := get_path_url(value):
        return {"url": url, "name": Path(value).name, "content": b64encode(Path(value).read_bytes()).decode()}
    if isinstance(value, dict):
        return {key: seen(item) for key, item in value.items()}
    if isinstance(value, list):
        return [seen(item) for item in value]
    return value


def run(model: str, input: dict[str, Any]) -> Any:
    return seen(replicate.run(model, input=input))


def run_error(model: str, input: dict[str, Any]) -> Any:
    """Run what fails."""
    try:
        return seen(replicate.run(model, input=input))
    except ModelError as error:
        return {"error": str(error), "status": error.prediction.status}


def run_with_file(model: str, path: str, strategy: str | None) -> Any:
    return seen(replicate.run(model, input={"source": Path(path)}, file_encoding_strategy=strategy))


def use(model: str, input: dict[str, Any]) -> Any:
    return seen(replicate.use(model)(**input))


def use_with_file(model: str, path: str) -> Any:
    return seen(replicate.use(model)(source=Path(path)))


def use_streaming(model: str, input: dict[str, Any]) -> dict[str, Any]:
    """Iterate over what a model yields, and say whether it came while the model ran."""
    pieces, at = [], []
    for piece in replicate.use(model, streaming=True)(**input):
        pieces.append(seen(piece))
        at.append(time.monotonic())
    return {"pieces": pieces, "spread_s": at[-1] - at[0]}


def create(model: str, input: dict[str, Any], prefer: str) -> dict[str, Any]:
    owner, _, name = model.partition("/")
    made = client.models.predictions.create(model_owner=owner, model_name=name, input=input, prefer=prefer)
    return {"id": made.id, "status": made.status, "output": made.output}


def upload(content: str, **options: Any) -> dict[str, Any]:
    """Create a file, and find it again."""
    made = client.files.create(content=content.encode(), **options)
    got = client.files.get(file_id=made.id)
    listed = [file.id for file in client.files.list()]
    return {"made": made.to_dict(mode="json"), "got": got.to_dict(mode="json"), "listed": listed}


def download(**options: Any) -> str:
    return client.files.download(**options).read().decode()


def delete(file: str) -> str:
    """Delete a file, and look for it."""
    client.files.delete(file_id=file)
    try:
        client.files.get(file_id=file)
    except NotFoundError as error:
        return str(error.response.json()["detail"])
    return ""


def secret() -> str:
    return str(client.webhooks.default.secret.get().key)


SCENARIOS = (
    run,
    run_error,
    run_with_file,
    use,
    use_with_file,
    use_streaming,
    create,
    upload,
    download,
    delete,
    secret,
)

if __name__ == "__main__":
    play = {scenario.__name__: scenario for scenario in SCENARIOS}[sys.argv[1]]
    print(json.dumps(play(**json.load(sys.stdin))))
