"""What a worker token may be limited to: models by name, `owner/name` or all of an owner's (`owner/*`)."""

from collections.abc import Sequence
from typing import Annotated, Final

from msgspec import Meta

_NAME: Final = "[0-9A-Za-z][0-9A-Za-z._-]{0,99}"
MAX_MODELS: Final = 100
ModelPattern = Annotated[str, Meta(pattern=rf"^{_NAME}/(?:{_NAME}|\*)\Z")]
Models = Annotated[tuple[ModelPattern, ...], Meta(min_length=1, max_length=MAX_MODELS)]


def covers(models: Sequence[str] | None, model: str) -> bool:
    """Say whether this limit lets a worker offer `owner/name`; None is no limit."""
    owner, slash, _ = model.partition("/")
    return models is None or (bool(slash) and (model in models or f"{owner}/*" in models))


def named(models: Sequence[str]) -> list[str]:
    """Return the models that a limit names one by one."""
    return [model for model in models if not model.endswith("/*")]
