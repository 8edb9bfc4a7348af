"""Who gets a place: no host takes those of others, and one that is down gets little."""

from cogflare.engine.hosts import PLACES, PLACES_A_HOST, PLACES_AN_ACCOUNT, PROBES, Hosts
from engine.rig import MovableClock


def open_hosts() -> tuple[Hosts, MovableClock]:
    clock = MovableClock()
    return Hosts(clock), clock


def test_a_host_has_several_places_while_there_are_enough() -> None:
    hosts, _ = open_hosts()
    assert hosts.room("a") == PLACES_A_HOST
    hosts.take("a", 3)
    assert hosts.room("a") == PLACES_A_HOST - 3
    hosts.give("a", 2)
    assert hosts.room("a") == PLACES_A_HOST - 1


def test_when_places_run_low_each_host_has_one() -> None:
    hosts, _ = open_hosts()
    for number in range(PLACES // 2 // PLACES_A_HOST):
        hosts.take(f"slow{number}", PLACES_A_HOST)
    assert hosts.room("slow0") == 0
    others = 0
    while room := hosts.room(f"bob other{others}"):
        assert room == 1
        hosts.take(f"bob other{others}")
        others += 1
    assert others == PLACES // 2


def test_one_that_is_down_has_one_try_after_a_pause_that_grows() -> None:
    hosts, clock = open_hosts()
    pauses = []
    for _ in range(10):
        hosts.note("a", is_up=False)
        began = clock.ahead_s
        while not hosts.room("a"):
            clock.ahead_s += 0.25
        pauses.append(clock.ahead_s - began)
        assert hosts.room("a") == 1
    assert pauses[0] <= 0.5
    assert pauses == sorted(pauses)
    assert pauses[-1] <= 30
    hosts.take("a")
    assert hosts.room("a") == 0
    hosts.note("a", is_up=True)
    assert hosts.room("a") == PLACES_A_HOST - 1


def test_those_that_are_down_have_a_part_of_the_places_together() -> None:
    hosts, clock = open_hosts()
    for number in range(PLACES):
        hosts.note(f"down{number}", is_up=False)
    clock.ahead_s += 60
    for number in range(PLACES):
        hosts.take(f"down{number}", hosts.room(f"down{number}"))
    assert hosts.total == PROBES
    assert hosts.room("up") == PLACES_A_HOST


def test_no_account_has_all_places() -> None:
    hosts, _ = open_hosts()
    count = 0
    while room := hosts.room(f"ada {count}.example:443"):
        hosts.take(f"ada {count}.example:443", room)
        count += 1
    assert hosts.total == PLACES_AN_ACCOUNT < PLACES
    assert hosts.is_open
    assert hosts.room("bob 0.example:443") == 1
    hosts.give("ada 0.example:443")
    assert hosts.room("ada new.example:443") == 1


def test_a_host_is_down_for_the_account_that_found_it_so() -> None:
    hosts, _ = open_hosts()
    hosts.note("ada a.example:443", is_up=False)
    assert hosts.room("ada a.example:443") == 0
    assert hosts.room("bob a.example:443") == PLACES_A_HOST
