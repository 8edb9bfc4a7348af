"""Replicate's client for Python, version 1, called as its users call it; prints what a scenario saw as JSON."""

import asyncio
import json
import sys
from base64 import b64encode
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import replicate
from replicate.exceptions import ReplicateError
from replicate.helpers import FileOutput
from replicate.stream import ServerSentEvent
from replicate.webhook import InvalidSignatureError, Webhooks


def seen(value: Any) -> Any:
    """Return a value with every file in it as what can be read from it."""
    if isinstance(value, FileOutput):
        content = None if value.url.startswith("data:") else b64encode(value.read()).decode()
        return {"url": value.url, "content": content}
    if isinstance(value, dict):
        return {key: seen(item) for key, item in value.items()}
    if isinstance(value, list):
        return [seen(item) for item in value]
    return value


def events(stream: Iterable[ServerSentEvent]) -> list[list[Any]]:
    return [[event.event.value, seen(event.data), event.id] for event in stream]


def run(model: str, input: dict[str, Any]) -> Any:
    return seen(replicate.run(model, input=input))


def run_with_file(model: str, path: str, strategy: str | None) -> Any:
    with Path(path).open("rb") as file:
        return seen(replicate.run(model, input={"source": file}, file_encoding_strategy=strategy))


def stream(model: str, input: dict[str, Any]) -> dict[str, Any]:
    """Stream, and look at the prediction when the first event is here."""
    stream = replicate.stream(model, input=input)
    first = next(stream)
    status = replicate.predictions.get(replicate.predictions.list().results[0].id).status
    return {"status": status, "events": events([first]) + events(stream)}


def async_stream(model: str, input: dict[str, Any]) -> list[list[Any]]:
    async def collected() -> list[ServerSentEvent]:
        return [event async for event in await replicate.async_stream(model, input=input)]

    return events(asyncio.run(collected()))


def stream_error(model: str, input: dict[str, Any]) -> dict[str, Any]:
    """Stream what fails."""
    before: list[str] = []
    try:
        for event in replicate.stream(model, input=input):
            before.append(event.data)
    except RuntimeError as error:
        return {"before": before, "error": str(error)}
    return {"before": before}


def stream_of_ended(model: str, input: dict[str, Any]) -> list[list[Any]]:
    """Open the stream of a prediction that has ended."""
    prediction = replicate.models.predictions.create(model, input=input, wait=True)
    return events(prediction.stream())


def stream_of_canceled(model: str, input: dict[str, Any]) -> dict[str, Any]:
    """Cancel a prediction at its first event."""
    prediction = replicate.models.predictions.create(model, input=input)
    stream = prediction.stream()
    first = next(stream)
    prediction.cancel()
    return {"first": first.data, "last": events(stream)[-1], "status": prediction.status}


def create(model: str, input: dict[str, Any], webhook: str) -> str:
    return str(replicate.predictions.create(model=model, input=input, webhook=webhook).id)


def files(path: str) -> dict[str, Any]:
    """Create, get, list and delete a file."""
    made = replicate.files.create(path, metadata={"customer": "7"})
    with Path(path).open("rb") as content:
        named = replicate.files.create(content, filename="other.bin", content_type="text/x-other")
    got, listed = replicate.files.get(made.id), [file.id for file in replicate.files.list()]
    deleted = [replicate.files.delete(file.id) for file in (made, named)]
    try:
        replicate.files.get(made.id)
    except ReplicateError as error:
        gone = [error.status, error.detail]
    return {
        "made": made.dict(),
        "named": named.dict(),
        "got": got.dict(),
        "listed": listed[:2],
        "deleted": deleted,
        "gone": gone,
    }


def webhook(headers: dict[str, str], body: str) -> dict[str, Any]:
    """Validate a delivery, and the same with another body."""
    secret = replicate.webhooks.default.secret()
    Webhooks.validate(headers=headers, body=body, secret=secret, tolerance=300)
    try:
        Webhooks.validate(headers=headers, body=body + " ", secret=secret)
    except InvalidSignatureError as error:
        return {"key": secret.key, "refused": str(error)}
    return {"key": secret.key}


SCENARIOS = (
    run,
    run_with_file,
    stream,
    async_stream,
    stream_error,
    stream_of_ended,
    stream_of_canceled,
    create,
    files,
    webhook,
)

if __name__ == "__main__":
    play = {scenario.__name__: scenario for scenario in SCENARIOS}[sys.argv[1]]
    print(json.dumps(play(**json.load(sys.stdin))))
