"""How large the log and the output of an attempt may grow, and what stands where they were cut off.

A cut is told by the data itself, not by a flag beside it: what was stored is read back after a restart or a reconnect,
on whichever node, and what is cut stays cut under other limits too.
"""

import re
from collections.abc import Sequence

import msgspec

from cogflare.protocol.messages import MAX_ITEMS, MAX_LOG, MAX_OUTPUT

_LOG_MARK = re.compile(rb"(\A|\n)\[log cut off at (\d+) bytes\]\n\Z")
_ITEM_MARK = re.compile(rb'"\[output cut off at \d+ (?:bytes|items)\]"\Z')
_LONGEST_MARK = 64  # bytes
_FILES = (b'"cogflare-file:', b'"data:', b'"https://', b'"http://')


class Sizes(msgspec.Struct, frozen=True):
    """The most bytes of an attempt's log, of an iterator's items together, and of an output that is one value.

    Items are counted too, because each costs memory beside its bytes.
    """

    log_bytes: int = MAX_LOG
    output_bytes: int = MAX_OUTPUT
    result_bytes: int = MAX_OUTPUT
    items: int = MAX_ITEMS


SIZES = Sizes()


def cut_log(log: bytearray, data: bytes, limit: int) -> None:
    """Append what fits under the limit, up to a whole character, and the mark as the last line."""
    log += data[: character_before(data, max(0, limit - len(log)))]
    limit = max(limit, len(log))
    log += b"" if not log or log.endswith(b"\n") else b"\n"
    log += b"[log cut off at %d bytes]\n" % limit


def character_before(text: bytes | bytearray, at: int) -> int:
    """Return the last place up to `at` where a character of a UTF-8 text begins or the text ends."""
    if at >= len(text):
        return len(text)
    for place in range(at, max(-1, at - 4), -1):
        if text[place] & 0xC0 != 0x80:
            return place
    return at


def is_cut_log(log: bytes | bytearray) -> bool:
    """Say whether a log ends with the mark of a cut at that place; a model may print such a line elsewhere."""
    found = _LOG_MARK.search(log[-_LONGEST_MARK:])
    # A limit may fall inside a character of up to four bytes.
    return found is not None and 0 <= int(found[2]) - (len(log) - len(found[0])) <= 4


def is_text(items: Sequence[bytes]) -> bool:
    """Say whether an output can end with a mark: all of it are strings, and none of them is the address of a file."""
    return all(item[:1] == b'"' and not item.startswith(_FILES) for item in items)


def output_mark(count: int, sizes: Sizes) -> bytes:
    """Return the last item of an output that was cut off after so many items."""
    where = f"{sizes.items} items" if count >= sizes.items else f"{sizes.output_bytes} bytes"
    return f'"[output cut off at {where}]"'.encode()


def is_cut_output(items: Sequence[bytes]) -> bool:
    """Say whether an output ends with the mark of a cut."""
    return bool(items) and _ITEM_MARK.match(items[-1]) is not None


def too_large(limit: int) -> str:
    """Return the error of a prediction whose output cannot be kept and cannot be cut either."""
    return f"Output is larger than {limit} bytes"


def too_many(limit: int) -> str:
    """Return the error of a prediction whose output has too many items and cannot be cut either."""
    return f"Output has more than {limit} items"
