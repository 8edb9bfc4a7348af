"""The rules of webhooks: hosts, events, pauses."""

import pytest

from cogflare.domain.webhooks import (
    FIRST_PAUSE_US,
    LONGEST_PAUSE_US,
    account_of,
    host_of,
    lane_of,
    pause_us,
    wanted_events,
)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://Example.COM/Path?q=1", "example.com:443"),
        ("http://example.com", "example.com:80"),
        ("http://example.com:8080/", "example.com:8080"),
        ("https://[2001:DB8::1]:99/x", "2001:db8::1:99"),
        ("http://user:word@Example.com/", "example.com:80"),
        ("http://example.com:port/", "unknown"),
        ("http://[broken", "unknown"),
        ("nothing", "unknown"),
    ],
)
def test_the_host_of_a_url(url: str, host: str) -> None:
    assert host_of(url) == host


def test_the_events_of_a_filter() -> None:
    assert wanted_events(None) == {"output", "completed"}
    assert wanted_events('["start","logs"]') == {"start", "logs"}
    assert wanted_events("[]") == set()


def test_pauses_double_up_to_an_hour_and_are_drawn_from_the_upper_half() -> None:
    longest = [pause_us(tries, 1.0) for tries in range(1, 60)]
    assert longest[:4] == [FIRST_PAUSE_US * 2**number for number in range(4)]
    assert longest[-1] == max(longest) == LONGEST_PAUSE_US
    assert [pause_us(tries, 0.0) for tries in range(1, 60)] == [pause // 2 for pause in longest]


@pytest.mark.parametrize(
    ("asked_s", "pause"), [(None, 5), (1, 5), (60, 60), (3600, 3600), (1e9, 3600), (-1, 5), (float("inf"), 3600)]
)
def test_what_the_receiver_asks_for_counts_where_it_is_longer(asked_s: float | None, pause: int) -> None:
    assert pause_us(1, 1.0, asked_s) == pause * 1_000_000


def test_a_lane_is_of_one_account() -> None:
    assert lane_of("ada", "https://A.example/x") == lane_of("ada", "https://a.example:443/y") == "ada a.example:443"
    assert account_of(lane_of("ada", "https://a.example/")) == "ada"
    assert account_of("unknown") == ""
