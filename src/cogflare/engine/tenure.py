"""Our side of an errand: whether its attempt is still ours and wanted, what is shown of it, and how it ends here.

What ends the prediction is the same compare-and-set as for workers: a cancel, a limit or a loss may be first.
"""

import asyncio
from contextlib import suppress
from typing import Any, Final

import msgspec
import structlog
from msgspec import Raw

from cogflare.blobs.base import BlobError
from cogflare.domain import money
from cogflare.domain.errors import BadRoute
from cogflare.domain.phases import Phase
from cogflare.domain.policy import WORKERS, WORKERS_ONLY, Policy
from cogflare.engine.adoption import committed
from cogflare.engine.bell import Breakable, Broken
from cogflare.engine.files import Superseded
from cogflare.engine.imports import ImportFailed
from cogflare.engine.live import Holder, Live, hook_of
from cogflare.engine.means import Means, Silence, within
from cogflare.engine.mirror import Mirror, items_of
from cogflare.protocol.messages import AttemptKey, Finish
from cogflare.providers.base import Executor, ProviderError, Refused, Sight, Submission, Terms
from cogflare.store import errands, fleet, predictions
from cogflare.store.errands import ErrandRow
from cogflare.store.fleet import AttemptState
from cogflare.store.predictions import PredictionRow

_SHORTEST_S: Final = 1.0  # that a provider is told as a limit


class _Decision(msgspec.Struct, frozen=True):
    """Of a kept decision, the prices that held for the run."""

    prices: money.Prices = money.Prices()


_prices: Final = msgspec.json.Decoder(_Decision)
NOT_COPIED: Final = (ProviderError, BlobError, ImportFailed)

log = structlog.get_logger()


class TakenOver(Exception):
    """Somebody else drives the errand now."""


class Tenure:
    """The attempt of an errand on this node; `holder` is what hears that it is not wanted any more.

    `copies` counts the tries to copy files. What copies is given up when the attempt is not wanted (`breakable`).
    """

    def __init__(self, means: Means, row: ErrandRow, holder: Holder, breakable: Breakable) -> None:
        self.is_loaded = False
        self.is_wanted = True
        self.prediction: PredictionRow | None = None
        self.mirror: Mirror | None = None
        self.copies = Silence(means.pace)
        self.check_at = 0.0
        self._means = means
        self._row = row
        self._holder = holder
        self._breakable = breakable
        self._renewals = 0
        self._files = 0
        self._queue = ""
        self._own_queues: tuple[str, ...] | None = None

    @property
    def key(self) -> AttemptKey:
        """The attempt that it is."""
        return self._row.key

    @property
    def live(self) -> Live:
        """What is shown of an attempt that was wanted when it was loaded."""
        assert self.mirror is not None
        return self.mirror.live

    # --- whose it is -----------------------------------------------------------------------------------------------

    async def load(self, *, is_new: bool) -> None:
        """Take the attempt into memory, as far as it is committed, if it is wanted; raises `TakenOver`."""
        means, key = self._means, self.key
        chunks = [] if is_new else await predictions.chunks(means.db, [key])
        row = await predictions.get(means.db, key[0])
        state = await self.check()
        self.is_loaded = True
        if row is None or state is None or not self.is_wanted:
            return
        self.prediction, self._queue = row, state.queue
        live = Live(*key, row.account, row.version, row.created_at, self._holder, started_at=state.started_at)
        live.assigned_at, live.sizes, live.hook = means.clock.monotonic(), means.sizes, hook_of(row)
        live.restore(*committed(chunks, state.output_items, state.log_bytes))
        live.committed_start = state.started_at is not None
        # What is restored may name files, and to bind none is harmless.
        self._files = len(live.items)
        self.mirror = Mirror(live, means.clock, row.run_limit_s)
        means.predictions.lives[row.id] = live
        means.predictions.feeds.changed(row.id)
        # Who ended it while it was read has told nobody here.
        self.check_at = means.clock.monotonic()

    async def check(self) -> AttemptState | None:
        """See from the store whether the attempt is wanted, since hints may be lost; raises `TakenOver`."""
        state = await fleet.get_attempt(self._means.db, *self.key)
        if state is not None and state.link_epoch != self._row.epoch:
            raise TakenOver
        self.check_at = self._means.clock.monotonic() + self._means.pace.check_s
        is_current = state is not None and state.current == self._row.attempt
        if state is None or not is_current or state.phase not in (Phase.ASSIGNED, Phase.RUNNING):
            self.is_wanted = False
            self.forget()
        else:
            self._renewals = state.renewals
        return state

    def forget(self) -> None:
        """Show no live data any more."""
        if self.mirror is not None:
            self._means.predictions.drop(self.mirror.live)

    # --- what is asked for -----------------------------------------------------------------------------------------

    async def order(self, executor: Executor, terms: Terms) -> Submission:
        """Return the run to be made, with files that the provider reads; raises `ImportFailed` or a `ProviderError`."""
        means, row = self._means, self.prediction
        assert row is not None
        text = await means.predictions.input(row)
        if text is None:
            raise Refused("its input has been removed")
        input = await means.files.inputs(executor, row, text)
        now, mark = means.clock.wall(), self._row.mark
        start_by = row.start_by if row.started_at is None else None
        start_limit_s, left_s = _soonest(now, start_by, row.deadline), _soonest(now, row.deadline)
        run_limit_s = min((limit for limit in (row.run_limit_s, left_s) if limit is not None), default=None)
        return Submission(mark, terms, input, run_limit_s, start_limit_s, means.callback(mark), row.hops + 1)

    # --- what is shown ---------------------------------------------------------------------------------------------

    async def show(self, sight: Sight, executor: Executor) -> bool:
        """Show what is new of a run that goes on, and say whether anything was; no item comes before its files."""
        mirror, means = self.mirror, self._means
        assert mirror is not None
        had_started = mirror.live.started_at is not None
        is_new = mirror.show(sight)
        if is_new:
            if not had_started and mirror.live.started_at is not None:
                means.started()
            means.predictions.feeds.changed(self._row.prediction)
        try:
            return await self._add_items(sight, executor) or is_new
        except NOT_COPIED as error:
            # The end needs them all; until then what there is has to do.
            log.info("files of an output are not there yet", prediction=self._row.prediction, error=str(error))
            return is_new

    async def _add_items(self, sight: Sight, executor: Executor) -> bool:
        mirror, means = self.mirror, self._means
        assert mirror is not None
        news = mirror.news(sight) if mirror.live.started_at is not None else []
        if not news:
            return False
        output = await self._copy(Raw(b"[" + b",".join(news) + b"]"), executor)
        mirror.add(news, items_of(output) or [])
        means.predictions.feeds.changed(self._row.prediction)
        if mirror.live.overflow is not None:
            await means.predictions.end_too_large(mirror.live)
        return True

    async def _copy(self, output: Raw, executor: Executor) -> Raw:
        """Return an output whose files are in our storage."""
        copying = self._means.files.outputs(executor, self._holder.worker, self.key, output, self._means.sizes)
        try:
            copied, files = await self._breakable.run(copying)
        except Superseded:
            await self.check()
            if not self.is_wanted:
                raise Broken from None
            raise ImportFailed("output", "the attempt is over", may_pass=True) from None
        self._files += files
        return copied

    # --- how it ends -----------------------------------------------------------------------------------------------

    async def result(self, sight: Sight, executor: Executor) -> Finish | float:
        """Return what ends the prediction, or the seconds until the files of its output are looked for again."""
        mirror = self.mirror
        assert mirror is not None
        is_success = sight.state == "succeeded"
        mirror.show(msgspec.structs.replace(sight, started=True) if is_success else sight)
        output = None
        try:
            if mirror.is_iterator(sight):
                await self._add_items(sight, executor)
            elif sight.output is not None:
                output = await self._copy(sight.output, executor)
        except NOT_COPIED as error:
            now = self._means.clock.monotonic()
            pause_s, is_long = self.copies.again(now), self.copies.is_long(now)
            may_pass = error.may_pass if isinstance(error, ImportFailed) else True
            if is_success and may_pass and not is_long:
                return pause_s
            if is_success:
                text = f"The run succeeded at {self._row.provider_name}, but its output could not be copied: {error}"
                sight = msgspec.structs.replace(sight, state="failed", error=text)
        return mirror.finish(sight, output, self._files)

    async def finish(self, finish: Finish) -> None:
        """End the prediction, unless somebody was faster."""
        live = self.live
        live.ending = True
        try:
            verdict = await self._means.predictions.finish(live, finish, None)
        except BaseException:
            live.ending = False
            raise
        about = {"prediction": self._row.prediction, "attempt": self._row.attempt}
        log.info("errand delivered", **about, status=finish.status, verdict=verdict)

    async def rescue(
        self, reason: str, *, has_run: bool | None = None, is_innocent: bool = False, slot_free: bool = False
    ) -> None:
        """Give the prediction back to the queue, or end it where it may not run again (`has_run` None: as shown)."""
        live = None if self.mirror is None else self.mirror.live
        if live is not None and has_run is not None:
            live.started_at = (live.started_at or self._means.clock.wall()) if has_run else None
        about: dict[str, Any] = {"is_innocent": is_innocent, "renewals": self._renewals}
        await self._means.losses.rescue(self.key, reason, live=live, slot_free=slot_free, **about)
        self.forget()

    async def disown(self, made: Sight, executor: Executor, terms: Terms) -> None:
        """End a run that was made after somebody else had taken over, unless that one has found it."""
        means, clock = self._means, self._means.clock
        due = clock.monotonic() + means.pace.find_again_s + means.pace.submit_s
        while not executor.is_repeatable:
            row = await errands.get(means.db, *self.key)
            if row is not None and row.remote_id == made.remote_id:
                return
            if row is None or row.is_over or row.remote_id is not None:
                log.error("canceling a second run", prediction=self._row.prediction, remote_id=made.remote_id)
                with suppress(ProviderError):
                    await within(executor.cancel(made.remote_id, terms), means.pace.call_s)
                    return
            if clock.monotonic() >= due:
                return
            await asyncio.sleep(means.pace.retry_s)

    # --- its route -------------------------------------------------------------------------------------------------

    async def own_queues(self) -> tuple[str, ...]:
        """Return the queues in which a worker would get the prediction before this provider; none if it would not."""
        if self._own_queues is None:
            policy, row = await self._policy(), self.prediction
            names = [hop.name for hop in (WORKERS_ONLY if policy is None else policy).hops]
            before = names[: names.index(self._row.provider_name)] if self._row.provider_name in names else names
            is_first = row is not None and WORKERS in before
            self._own_queues = await self._means.losses.queues(row, self._queue) if is_first and row else ()
        return self._own_queues

    async def cost(self, sight: Sight) -> int | None:
        """Return what a run cost, in micros; None: nobody can tell."""
        if sight.cost is None and sight.state != "succeeded" and not sight.started:
            return 0
        kept = _prices.decode(self._row.decision).prices
        if kept.are_known:
            return money.cost(kept, kept, sight.cost, sight.run_s)
        policy, provider = await self._policy(), await self._means.providers.get(self._row.provider)
        hop = None if policy is None else policy.hop(self._row.provider_name)
        settings = None if provider is None else provider.settings
        own = money.Prices() if hop is None else hop.prices
        table = money.Prices() if settings is None else money.Prices(settings.price_per_s, settings.price_per_run)
        return money.cost(own, table, sight.cost, sight.run_s)

    async def _policy(self) -> Policy | None:
        """Return the route of the prediction as it is now."""
        row = self.prediction or await predictions.get(self._means.db, self._row.prediction)
        try:
            wish = None if row is None else row.route
            return await self._means.routes.effective(self._row.account, self._row.model, wish)
        except BadRoute:
            return None


def _soonest(now: int, *times: int | None) -> float | None:
    """Return the seconds until the first of these times."""
    left = [max(_SHORTEST_S, (time - now) / 1_000_000) for time in times if time is not None]
    return min(left, default=None)
