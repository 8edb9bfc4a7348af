"""One attempt at a provider, from its intent until its cost is known: submit, look, cancel, deliver, settle.

    intent ──submit──▶ submitted ──looks──▶ ended there ──deliver──▶ over
      │ ▲                  │                                          ▲
      ▼ │ find             └── no answer for long, or it is gone ─────┤
    in doubt ──── nobody can tell: what was reserved is the cost ─────┘

The prediction may end or move on at any of these steps; the errand then cancels, and is over when the run is over
there. Each step may fail and is done again. A crash at any of them leaves a row from which the next process goes on:
what ends the prediction is committed before what ends the errand.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import msgspec
import structlog

from cogflare.engine.bell import Bell, Breakable, Broken
from cogflare.engine.imports import ImportFailed
from cogflare.engine.means import Means, Settlement, Silence, within
from cogflare.engine.mirror import forward, without_data
from cogflare.engine.providers import Provider
from cogflare.engine.tenure import TakenOver, Tenure
from cogflare.protocol.messages import AttemptKey, Finish
from cogflare.providers.base import (
    Busy,
    Denied,
    Executor,
    Gone,
    ProviderError,
    Refused,
    Sight,
    Submission,
    Terms,
    Unanswered,
)
from cogflare.store import errands as store
from cogflare.store.base import Conflict, Full, Unavailable
from cogflare.store.errands import ErrandRow

TAKEN_BACK: Final = "taken back: a worker of your own is free"
_SLOWER: Final = 1.5
_TELLS: Final = 6  # times, within some seconds, that a provider may fail to tell of a run although it answers

log = structlog.get_logger()


class Errand:
    """Drives one errand; the holder of the attempt, as the link of a worker is.

    `is_new`: nobody can have submitted it before. `rouse` is called when a provider answers again. `word` is what keeps
    it from being submitted, for people. `is_lost`: it is somebody else's now.
    """

    def __init__(self, means: Means, row: ErrandRow, rouse: Callable[[str], None], *, is_new: bool) -> None:
        self.row = row
        self.worker = f"provider:{row.provider}"
        self.epoch = row.epoch
        self.sight: Sight | None = None
        self.word: str | None = None
        self.is_over = False
        self.is_lost = False
        self.is_taken_back = False
        self._means = means
        self._rouse = rouse
        self._pace = means.pace
        self._now = means.clock.monotonic
        self._about = {"prediction": row.prediction, "attempt": row.attempt, "provider": row.provider_name}
        self._terms = msgspec.json.decode(row.terms, type=Terms)
        self._bell = Bell()
        self._breakable = Breakable()
        self._tenure = Tenure(means, row, self, self._breakable)
        self._settlement: Settlement | None = None
        self._order: Submission | None = None
        self._remote = row.remote_id
        self._is_saved = row.remote_id is not None
        self._is_tried = not is_new
        self._was_in_doubt = not is_new
        self._doubt_at = self._now()
        self._is_submitting = False
        self._is_halted = False
        self._cancel_at = float("-inf")
        self._gone_at: float | None = None
        self._pause_s = self._pace.first_s
        self._answers, self._units, self._faults = (Silence(self._pace) for _ in range(3))
        self._unwanted_at: float | None = None
        self._hints: asyncio.Task[None] | None = None
        self._hints_at = float("-inf")

    @property
    def key(self) -> AttemptKey:
        """The attempt that it is."""
        return self.row.key

    @property
    def is_delicate(self) -> bool:
        """Whether a crash now would leave open what was done."""
        return self._is_submitting or (self._remote is not None and not self._is_saved)

    @property
    def is_cold(self) -> bool:
        """Whether a wanted run waits at the provider, or even to be sent there."""
        if self.is_taken_back or not self._is_wanted or not self._tenure.is_loaded or self._settlement is not None:
            return False
        return self._has_not_begun if self._remote is not None else self.word is not None and not self._is_tried

    @property
    def is_silent(self) -> bool:
        """Whether the provider does not answer at the moment."""
        return self._answers.tries > 0

    @property
    def _has_not_begun(self) -> bool:
        return self.sight is not None and self.sight.state == "waiting" and not self.sight.started

    @property
    def _is_wanted(self) -> bool:
        return self._tenure.is_wanted

    # --- what others ask of it -------------------------------------------------------------------------------------

    def cancel(self, key: AttemptKey) -> None:
        """End the run at the provider: the attempt is no longer wanted."""
        if key == self.key and self._is_wanted:
            self._tenure.is_wanted = False
            self._turn()

    def take_back(self) -> None:
        """End a run that has not begun: a worker can have the prediction."""
        if self.is_cold:
            self.is_taken_back = True
            self._turn()

    async def own_queues(self) -> tuple[str, ...]:
        """Return the queues in which a worker would get the prediction before this provider; none if it would not."""
        return await self._tenure.own_queues()

    def look(self) -> None:
        """Look soon: the provider says that something has changed."""
        self._bell.hint()

    def doubt(self) -> None:
        """See from the store whose the errand is."""
        self._tenure.check_at = float("-inf")
        self._bell.ring()

    def halt(self) -> None:
        """Stop after what is being done: the run goes on at the provider, and is taken over later."""
        self._is_halted = True
        self._bell.ring()

    async def run(self) -> None:
        """Go on until the errand is over, or somebody else's."""
        try:
            while not (self.is_over or self._is_halted):
                pause_s = await self._try()
                if not (self.is_over or self._is_halted):
                    await self._bell.rest(pause_s)
        finally:
            if self._hints is not None:
                self._hints.cancel()
            self._means.files.forget(self.key)

    def _turn(self) -> None:
        """Do something else than before, at once."""
        self._cancel_at = float("-inf")
        self._pause_s = self._pace.first_s
        self._breakable.break_off()
        self._bell.ring()

    # --- steps -----------------------------------------------------------------------------------------------------

    async def _try(self) -> float:
        """Do the next step; returns the seconds until the one after it."""
        try:
            pause_s = await self._step()
        except Broken:
            return 0.0
        except TakenOver:
            log.warning("errand is driven elsewhere", **self._about)
            self._tenure.forget()
            self.is_over = self.is_lost = True
            return 0.0
        except (Unavailable, Full) as error:
            log.warning("the store refused a step of an errand", **self._about, error=str(error))
            self._faults.broken()
            return self._units.again(self._now())
        except Exception:
            log.exception("step of an errand failed", **self._about)
            return self._faults.again(self._now())
        self._units.broken()
        self._faults.broken()
        return pause_s

    async def _step(self) -> float:
        tenure = self._tenure
        if self._settlement is not None:
            return await self._settle(self._settlement)
        if self._faults.is_long(self._now()):
            return await self._give_up(f"what {self.row.provider_name} answers cannot be used")
        if not tenure.is_loaded:
            await tenure.load(is_new=not self._was_in_doubt)
        elif self._now() >= tenure.check_at:
            await tenure.check()
        provider = await self._means.providers.get(self.row.provider)
        if provider is None:
            return await self._unanswered("the provider has been removed")
        try:
            return await self._go_on(self._means.providers.executor(provider), provider)
        except Busy as error:
            self.word = str(error) if self._remote is None else None
            self._answered()
            return self._pace.bounded(error.retry_after_s)
        except Denied as error:
            await self._pause(provider, error)
            return await self._unanswered(str(error))
        except ProviderError as error:
            return await self._unanswered(str(error))

    async def _go_on(self, executor: Executor, provider: Provider) -> float:
        if not self._is_wanted:
            self._unwanted_at = self._now() if self._unwanted_at is None else self._unwanted_at
            if self._now() - self._unwanted_at >= self._pace.unwanted_s:
                return await self._give_up(f"{self.row.provider_name} does not end it")
        if self._remote is None:
            if self._is_tried:
                return await self._find(executor, provider)
            if not self._is_wanted or self.is_taken_back:
                return await self._give_back(Settlement(cost=0))
            return await self._submit(executor, provider)
        if not self._is_saved:
            await self._save()
        return await self._look(executor)

    # --- submit ----------------------------------------------------------------------------------------------------

    async def _submit(self, executor: Executor, provider: Provider) -> float:
        """Make the run, unless the provider does not take it."""
        was_tried = self._is_tried
        try:
            if self._order is None:
                self._order = await self._breakable.run(self._tenure.order(executor, self._terms))
            return await self._make(self._order, executor)
        except Refused as error:
            return await self._refused(str(error), executor)
        except ImportFailed as error:
            copies, now = self._tenure.copies, self._now()
            self.word, pause_s = str(error), copies.again(now)
            is_final = not error.may_pass or copies.is_long(now)
            return await self._refused(str(error), executor) if is_final else pause_s
        except Denied as error:
            self._is_tried = was_tried
            if was_tried:
                raise
            await self._pause(provider, error)
            return await self._give_back(Settlement(cost=0), f"{self.row.provider_name} takes nothing: {error}")
        except Busy:
            self._is_tried = was_tried
            raise

    async def _make(self, order: Submission, executor: Executor) -> float:
        """Submit. Nothing breaks that off: what was made must be known."""
        # A process that stood still must not make what another has made meanwhile.
        await self._tenure.check()
        if not self._is_wanted:
            return 0.0
        self._is_tried = self._is_submitting = True
        try:
            sight = await within(executor.submit(order), self._pace.submit_s)
            try:
                await self._made(sight)
            except TakenOver:
                await self._tenure.disown(sight, executor, self._terms)
                raise
        except Unanswered:
            self._was_in_doubt, self._doubt_at = True, self._now()
            raise
        finally:
            self._is_submitting = False
        return 0.0 if sight.is_ended else self._pace.soon_s

    async def _made(self, sight: Sight) -> None:
        """Note that there is a run, before anything else is done with it."""
        self._answered()
        self._remote, self.sight, self.word = sight.remote_id, sight, None
        self._pause_s = self._pace.first_s
        log.info("errand submitted", **self._about, remote_id=sight.remote_id)
        await self._save()

    async def _save(self) -> None:
        assert self._remote is not None
        try:
            unit = store.submitted(self.key, self.epoch, self._remote, self._means.clock.wall())
            await self._means.db.write(unit)
        except Conflict:
            known = await store.get(self._means.db, *self.key)
            if known is None or known.epoch != self.epoch or known.remote_id != self._remote:
                raise TakenOver from None
        self._is_saved = True

    async def _find(self, executor: Executor, provider: Provider) -> float:
        """Look whether there is a run: it was submitted, and no answer came or the process died."""
        may_repeat = executor.is_repeatable and self._is_wanted and not self.is_taken_back
        if may_repeat and self._order is not None:
            return await self._submit(executor, provider)
        try:
            found = await self._search(executor)
        except Unanswered as error:
            if may_repeat:
                return await self._submit(executor, provider)
            return await self._untold(executor, str(error))
        self._answered()
        waited_s = self._now() - self._doubt_at
        if found is not None:
            await self._made(found)
        elif may_repeat or waited_s >= self._pace.find_again_s:
            self._is_tried = False
        else:
            return self._pace.find_again_s - waited_s
        return 0.0

    async def _search(self, executor: Executor) -> Sight | None:
        return await within(executor.find(self.row.mark, self.row.created_at), self._pace.call_s)

    async def _untold(self, executor: Executor, text: str) -> float:
        """Go on looking, unless the provider answers and cannot tell."""
        if self._answers.tries >= _TELLS:
            report = await within(executor.check(self._terms.endpoint), self._pace.call_s)
            if report.ok:
                return await self._give_up(f"{self.row.provider_name} cannot tell whether it was submitted")
        return await self._unanswered(text)

    async def _refused(self, words: str, executor: Executor) -> float:
        """End what the provider does not take, or leave it to others."""
        if self._was_in_doubt and self._order is not None:
            # It may have taken it the first time, and this one for another.
            found = await self._search(executor)
            if found is not None:
                await self._made(found)
                return 0.0
        if self._is_wanted and await self._means.has_other(self.row):
            # Its words may quote the input, and reasons are logged.
            await self._tenure.rescue(f"{self.row.provider_name} refused it", is_innocent=True)
        elif self._is_wanted:
            await self._tenure.finish(Finish(*self.key, "failed", error=words))
        return await self._settle(Settlement(cost=0, is_refused=True))

    async def _pause(self, provider: Provider, error: Denied) -> None:
        """Send nothing more to a provider until somebody has seen to it."""
        if provider.pause(self._means.clock.wall()) is None:
            await self._means.providers.pause(self.row.provider, None, str(error))

    # --- look ------------------------------------------------------------------------------------------------------

    async def _look(self, executor: Executor) -> float:
        """See how far the run is, show that, and end what has ended."""
        if self.sight is not None and self.sight.is_ended:
            return await self._end(self.sight, executor)
        is_unwanted = not self._is_wanted or self.is_taken_back
        if is_unwanted:
            await self._cancel_there(executor)
        try:
            seen = await self._breakable.run(self._poll(executor))
        except Gone as error:
            return await self._gone(str(error))
        self._answered()
        self._gone_at = None
        self.sight = sight = forward(self.sight, seen)
        if sight.is_ended:
            return await self._end(sight, executor)
        self.sight = without_data(sight)
        is_new = not is_unwanted and await self._tenure.show(sight, executor)
        self._follow(sight, executor)
        self._pause_s = self._pace.first_s if is_new else min(self._pause_s * _SLOWER, self._pace.slowest_s)
        left_s = self._cancel_at - self._now()
        return min(self._pause_s, left_s) if left_s > 0 else self._pause_s

    async def _poll(self, executor: Executor) -> Sight:
        assert self._remote is not None
        return await within(executor.poll(self._remote, self._terms), self._pace.call_s)

    async def _cancel_there(self, executor: Executor) -> None:
        """Ask that the run ends, again and again until it has."""
        if self._now() < self._cancel_at:
            return
        assert self._remote is not None
        again_s = self._pace.cancel_again_s
        self._pause_s = self._pace.first_s
        try:
            await within(executor.cancel(self._remote, self._terms), self._pace.call_s)
        except Gone:
            pass
        except ProviderError as error:
            log.warning("a run could not be canceled at its provider yet", **self._about, error=str(error))
            again_s = self._pace.retry_s
        self._cancel_at = self._now() + again_s

    def _follow(self, sight: Sight, executor: Executor) -> None:
        """Let the provider say when something changes, where it does."""
        if sight.stream is not None and self._hints is None and self._now() >= self._hints_at:
            self._hints_at = self._now() + self._pace.slowest_s
            self._hints = self._means.spawn(self._hear(sight, executor))

    async def _hear(self, sight: Sight, executor: Executor) -> None:
        try:
            async for _ in executor.changes(sight, self._terms):
                self._bell.hint()
        finally:
            self._hints = None

    # --- ends ------------------------------------------------------------------------------------------------------

    async def _end(self, sight: Sight, executor: Executor) -> float:
        """Deliver what a run has come to that has ended there, and settle."""
        run_us = None if sight.run_s is None else int(sight.run_s * 1_000_000)
        settlement = Settlement(await self._tenure.cost(sight), run_us)
        if not self._is_wanted:
            return await self._settle(settlement)
        if sight.state != "canceled":
            finish = await self._tenure.result(sight, executor)
            if not isinstance(finish, Finish):
                return finish
            await self._tenure.finish(finish)
        elif self.is_taken_back:
            return await self._give_back(settlement)
        elif self._tenure.mirror is not None:
            self._tenure.mirror.show(sight)
            await self._tenure.rescue(f"it was canceled at {self.row.provider_name}")
        return await self._settle(settlement)

    async def _gone(self, words: str) -> float:
        """Believe after a while that there is nothing there any more."""
        self._gone_at = self._now() if self._gone_at is None else self._gone_at
        if self._now() - self._gone_at < self._pace.gone_s:
            return min(self._pace.gone_s / 3, self._pace.slowest_s)
        if self._has_not_begun and (not self._is_wanted or self.is_taken_back):
            return await self._give_back(Settlement(cost=0))
        if self._is_wanted:
            await self._tenure.rescue(f"{self.row.provider_name} does not know it any more: {words}")
        return await self._settle(self._doubtful())

    def _answered(self) -> None:
        """Note an answer, for others too that wait for one."""
        was_silent = self.is_silent
        self._answers.broken()
        if was_silent:
            self._rouse(self.row.provider)

    async def _unanswered(self, text: str) -> float:
        """Wait for an answer, ever longer; in the end, without one."""
        pause_s = self._answers.again(self._now())
        if self._answers.tries == 1:
            log.warning("provider does not answer", **self._about, error=text)
        if self._remote is None:
            self.word = text
        if self._answers.is_long(self._now()):
            return await self._give_up(f"{self.row.provider_name} did not answer: {text}")
        return pause_s

    async def _give_up(self, reason: str) -> float:
        """Leave open what became of the run. That counts as a loss: somebody may have paid for it."""
        if not self._is_tried and self._remote is None:
            return await self._give_back(Settlement(cost=0), reason)
        if self._is_wanted:
            await self._tenure.rescue(reason, has_run=True)
        return await self._settle(self._doubtful())

    async def _give_back(self, settlement: Settlement, reason: str = TAKEN_BACK) -> float:
        """Give a prediction back that has not run, at once and with no strike."""
        if self._is_wanted:
            await self._tenure.rescue(reason, has_run=False, is_innocent=True, slot_free=True)
        return await self._settle(settlement)

    def _doubtful(self) -> Settlement:
        return Settlement(cost=self.row.reserved or None, is_in_doubt=True)

    async def _settle(self, settlement: Settlement) -> float:
        """End the errand: its slot is free, and its cost stands."""
        self._settlement = settlement
        row = msgspec.structs.replace(self.row, remote_id=self._remote)
        outcome = msgspec.structs.asdict(settlement)
        # A `Conflict`: it is over, by a unit of ours whose answer was lost, or somebody else drives it.
        with suppress(Conflict):
            await self._means.db.write(*store.settle(row, now=self._means.clock.wall(), **outcome))
        self._tenure.forget()
        self.is_over = True
        log.info("errand over", **self._about, cost=settlement.cost, is_in_doubt=settlement.is_in_doubt)
        return 0.0
