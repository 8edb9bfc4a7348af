"""Another Cogflare: it takes the mark of a run as the id of the prediction.

Whatever is sent again under it, even with other URLs of the same files, meets the same run.
"""

from typing import Any, Final

import msgspec
from msgspec import Raw

from cogflare.providers.base import Report, Sight, Submission
from cogflare.providers.calls import Rates
from cogflare.providers.replicate import Replicate, hops_of, model_of, path_of
from cogflare.providers.sights import read, sight

_REUSED: Final = "Reused for another request"
# A Cogflare has no limits; but nobody needs more of it.
_RATES: Final[Rates] = {"create": (6_000, 100), "cancel": (6_000, 100), "other": (12_000, 200)}


class _Problem(msgspec.Struct, frozen=True):
    title: str = ""


class Cogflare(Replicate):
    """Runs of one key at another Cogflare. The mark is the id of the prediction there."""

    is_repeatable = True
    needs_version = False
    rates = _RATES

    def _judged(self, report: Report) -> Report:
        if report.is_cogflare:
            return report
        text = f"{self._site.host} takes the key but is no Cogflare: it has to be a provider of the kind replicate"
        return msgspec.structs.replace(report, ok=False, text=text)

    async def submit(self, order: Submission) -> Sight:
        """Make a run, or meet the one that this mark has made."""
        body: dict[str, Any] = {"input": Raw(order.input)}
        path = f"/models/{model_of(order)}{path_of(order.mark)}"
        if order.terms.version is not None:
            path, body["version"] = path_of(order.mark), f"{order.terms.model}:{order.terms.version}"
        reply = await self._calls.call("PUT", path, msgspec.json.encode(body), hops_of(order), kind="create")
        if reply.is_good:
            return sight(self._readable(read, reply))
        if reply.status == 422 and self._calls.decoded(reply, _Problem).title == _REUSED:
            # Files that are uploaded again have other URLs, which makes another request of the same order.
            found = await self.find(order.mark, 0)
            if found is not None:
                return found
        raise self._calls.failure(reply)

    async def find(self, mark: str, since: int) -> Sight | None:
        """Read the prediction whose id is the mark."""
        reply = await self._calls.found(path_of(mark))
        return sight(self._readable(read, reply)) if reply.is_good else None

    def _stream(self, sight: Sight) -> str | None:
        """Return where the stream is; logs are told there too, for whoever asks."""
        if sight.stream is None:
            return None
        return f"{sight.stream}{'&' if '?' in sight.stream else '?'}logs=true"
