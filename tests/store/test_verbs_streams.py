"""What streams read of live data, over both databases."""

import pytest

from cogflare.domain.ids import new_id
from cogflare.store import predictions, streams
from cogflare.store.base import Database
from cogflare.store.predictions import Chunk

pytestmark = pytest.mark.anyio


async def test_chunks_come_from_the_one_on_in_which_a_position_lies(store: Database) -> None:
    prediction, other = new_id(1), new_id(2)
    output = [Chunk(prediction, 1, "output", position, f"{position}") for position in (0, 2, 5, 100)]
    log = [Chunk(prediction, 1, "log", position, "x" * 20) for position in (0, 20, 40)]
    strangers = [
        Chunk(prediction, 1, "result", 0, "9"),
        Chunk(prediction, 2, "output", 3, "9"),
        Chunk(other, 1, "log", 30, "9"),
    ]
    await store.write(predictions.append_chunks([*output, *log, *strangers]))

    async def read(items: int, log_bytes: int) -> list[Chunk]:
        return await streams.chunks(store, prediction, 1, items, log_bytes)

    assert await read(0, 0) == [*log, *output]
    assert await read(2, 20) == [*log[1:], *output[1:]]
    assert await read(4, 39) == [*log[1:], *output[1:]]
    assert await read(1_000, 1_000) == [log[-1], output[-1]]
    assert await streams.chunks(store, prediction, 3, 0, 0) == []


async def test_states_of_predictions_that_are_not_there(store: Database) -> None:
    assert await streams.states(store, [new_id(1)]) == {}
    assert await streams.states(store, []) == {}
