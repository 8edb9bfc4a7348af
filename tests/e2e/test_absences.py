"""Workers and servers that lose each other for longer than a moment, at the link's default times.

The longer absences are in `tests/chaos/long_absences.py`.
"""

from support.absences import check_network_away, check_server_away
from support.processes import Stage


def test_the_network_of_a_worker_is_away_for_half_a_minute(stage: Stage) -> None:
    check_network_away(stage, 30)


def test_the_server_is_away_for_a_while(stage: Stage) -> None:
    check_server_away(stage, 25)
