"""What a model requires of the machine that runs it, and what a machine has not of that.

Memory counts as its sellers count it, in thousands of thousands; a card that keeps a little of its own back (for error
correction, say) still is what is written on it. One card has to have it all: most models run on one.
"""

from collections.abc import Collection, Iterable
from typing import Annotated, Final

import msgspec
from msgspec import Meta

MAX_TAGS: Final = 32
Tag = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[0-9A-Za-z][0-9A-Za-z._:/=+-]*\Z")]
_KEPT_BACK: Final = 0.02
_MB: Final = 1 << 20


class Requirements(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a machine has to have: a GPU with so much memory, and all of these tags."""

    min_vram_gb: Annotated[float, Meta(gt=0, le=100_000)] | None = None
    tags: Annotated[tuple[Tag, ...], Meta(max_length=MAX_TAGS)] = ()

    def __bool__(self) -> bool:
        """Whether anything is required."""
        return self.min_vram_gb is not None or bool(self.tags)


def parse(text: str | None) -> Requirements:
    """Read stored requirements (JSON text); what cannot be read requires nothing."""
    if text is None:
        return Requirements()
    try:
        return msgspec.json.decode(text, type=Requirements)
    except msgspec.DecodeError:
        return Requirements()


def unmet(required: Requirements, vram_mb: Collection[int] | None, tags: Collection[str]) -> str:
    """Return what is lacking, as the words that follow a worker's name; empty: nothing.

    `vram_mb` are the memories of its GPUs, None where the worker has told nothing of its machine.
    """
    if not required:
        return ""
    if vram_mb is None:
        return f"does not say whether it has {_listed(_wishes(required))} (its agent tells nothing of its machine)"
    lacking = []
    if required.min_vram_gb is not None and not _has_vram(required.min_vram_gb, vram_mb):
        has = f"has {shown_gb(max(vram_mb))}" if vram_mb else "has no GPU"
        lacking.append(f"{required.min_vram_gb:g} GB of VRAM ({has})")
    lacking += [f"the tag {tag}" for tag in required.tags if tag not in tags]
    return f"lacks {_listed(lacking)}" if lacking else ""


def shown_gb(vram_mb: int) -> str:
    """Write a GPU's memory in the whole gigabytes that its name tells."""
    return f"{vram_mb / 1024:.0f}"


def shown(required: Requirements) -> str:
    """Write what is required for people; empty: nothing."""
    return _listed(_wishes(required))


def _has_vram(min_vram_gb: float, vram_mb: Iterable[int]) -> bool:
    return max(vram_mb, default=0) * _MB >= min_vram_gb * 1e9 * (1 - _KEPT_BACK)


def _wishes(required: Requirements) -> list[str]:
    vram = [] if required.min_vram_gb is None else [f"{required.min_vram_gb:g} GB of VRAM"]
    return vram + [f"the tag {tag}" for tag in required.tags]


def _listed(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)
