"""A worker whose model does next to nothing: the real agent around a runner of ours. Runs as a process of its own.

python -m cogflare.cli.benchmark.noop SERVER_URL WORKER_TOKEN SLOTS STATE_FOLDER noop|queue|stream
"""

import asyncio
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import uvloop

from cogflare.agent.address import ServerAddress
from cogflare.agent.agent import Agent
from cogflare.agent.clock import SystemClock
from cogflare.agent.console import Silence
from cogflare.agent.identity import claim_state
from cogflare.agent.inputs import InputFiles
from cogflare.agent.journal import Journal
from cogflare.agent.ledger import Ledger
from cogflare.agent.link import Link
from cogflare.agent.main import agent_end
from cogflare.agent.runners.base import Event, Finished, Job, LogSink, Offer, Output, Started
from cogflare.agent.shelf import Shelf
from cogflare.agent.transfer import Transfer
from cogflare.domain.ids import new_id

OWNER = "bench"
NAME, QUEUE, STREAM = "noop", "queue", "stream"  # models; nobody stays to work for the second
ITEM_S = 0.1  # from one item of a stream to the next


class _Input(msgspec.Struct):
    sent_at: int = 0
    items: int = 0
    item_s: float = ITEM_S
    is_stamped: bool = False


_decoder = msgspec.json.Decoder(_Input)


class NoopRunner:
    """A model that answers at once: "done", or how many microseconds ago the input's `sent_at` was."""

    def __init__(self, name: str, slots: int, clock: SystemClock) -> None:
        self._name = name
        self._slots = slots
        self._clock = clock

    async def setup(self, log: LogSink) -> Offer:
        """Return the offer; there is nothing to set up."""
        return Offer(
            owner=OWNER, name=self._name, version="0" * 64, schema=None, cog_version="0.16.0", slots=self._slots
        )

    async def run(self, job: Job) -> AsyncGenerator[Event, None]:
        """Start and finish."""
        now = self._clock.wall()
        sent_at = _decoder.decode(msgspec.json.encode(job.input)).sent_at
        yield Started(now)
        yield Finished(status="succeeded", output=now - sent_at if sent_at else "done", predict_time_s=0.0)

    async def cancel(self, prediction_id: str) -> None:
        """There is never anything to cancel."""

    async def restart(self) -> None:
        """There is nothing to restart."""

    async def wait_broken(self) -> str:
        """Never break."""
        await asyncio.Event().wait()
        return ""

    async def health(self) -> str | None:
        """Be well, always."""
        return None

    async def close(self) -> None:
        """There is nothing to close."""


class StreamRunner(NoopRunner):
    """A model that yields as many words as the input's `items` says, ten a second unless it has an `item_s`.

    Where `is_stamped`, each word is the time at which it was made, in microseconds since 1970.
    """

    async def setup(self, log: LogSink) -> Offer:
        """Return the offer of an iterator of text."""
        output = {"type": "array", "items": {"type": "string"}, "x-cog-array-type": "iterator"}
        schema = {"components": {"schemas": {"Input": {"type": "object"}, "Output": output}}}
        offer = await super().setup(log)
        return msgspec.structs.replace(offer, version="1" * 64, schema=schema)

    async def run(self, job: Job) -> AsyncGenerator[Event, None]:
        """Yield the words one by one."""
        asked = _decoder.decode(msgspec.json.encode(job.input))
        begun, words = asyncio.get_running_loop().time(), list[str]()
        yield Started(self._clock.wall())
        for index in range(asked.items):
            await asyncio.sleep(max(0.0, begun + (index + 1) * asked.item_s - asyncio.get_running_loop().time()))
            words.append(f"{self._clock.wall():016d}" if asked.is_stamped else f"word {index} ")
            yield Output(index, words[-1])
        yield Finished(status="succeeded", output=words, predict_time_s=0.0)


async def run(server: str, token: str, slots: int, state: Path, model: str) -> int:
    """Run the agent until it is killed."""
    clock, console = SystemClock(), Silence()
    address = ServerAddress(server)
    runner = (StreamRunner if model == STREAM else NoopRunner)(model, slots, clock)
    with claim_state(state, address.base, f"{OWNER}/{model}", clock.wall) as claimed:
        transfer = Transfer(address, lambda: token, claimed.worker)
        inputs = InputFiles(address, Shelf())
        offer = await runner.setup(print)
        end = agent_end(offer, claimed.worker, new_id(clock.wall()), "bench", console)
        link = Link(end, address, lambda: token, console, clock=clock)
        journal = Journal(claimed.path, print)
        ledger = Ledger(claimed.path, print)
        agent = Agent(runner, end, link, journal, transfer, inputs, console=console, clock=clock, ledger=ledger)
        return await agent.run()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(run(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]), sys.argv[5])))
