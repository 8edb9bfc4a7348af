"""Ids sort by time; keys do not repeat."""

from hypothesis import given
from hypothesis import strategies as st

from cogflare.domain.ids import KEY_LENGTH, is_id, lowest_id, new_id, new_key

times = st.integers(min_value=0, max_value=2**53 - 1)


@given(times)
def test_an_id_lies_between_the_lowest_of_its_millisecond_and_of_the_next(time: int) -> None:
    made = new_id(time)
    assert is_id(made)
    assert lowest_id(time) <= made < lowest_id(time + 1000)


@given(times, times)
def test_ids_sort_by_time(first: int, second: int) -> None:
    if first // 1000 < second // 1000:
        assert new_id(first) < new_id(second)


def test_keys_do_not_repeat() -> None:
    keys = {new_key() for _ in range(10_000)}
    assert len(keys) == 10_000
    assert {len(key) for key in keys} == {KEY_LENGTH}
