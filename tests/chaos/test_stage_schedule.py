"""The schedule: what a seed stands for, and what no plan ever does."""

import pytest

from cogflare.cli.verification.schedule import MAX_OUTAGE_S, Ground, Strike, plan

ONE_NODE = Ground(nodes=1, workers=4)
TWO_NODES = Ground(nodes=2, workers=5, restarts_database=True)
SEEDS = range(30)
KINDS = {"kill", "stop", "restart", "reset", "cut", "slow", "half_open", "disk_full", "clock_jump"}


def keeps_away(strike: Strike, worker: int) -> bool:
    if strike.target in (f"link-{worker}", f"worker-{worker}"):
        return strike.kind not in ("kill", "clock_jump")
    return strike.target.startswith(("server", "database")) and strike.kind != "clock_jump"


def test_a_seed_is_one_plan() -> None:
    assert plan(7, 60, TWO_NODES) == plan(7, 60, TWO_NODES) != plan(8, 60, TWO_NODES)


@pytest.mark.parametrize("ground", [ONE_NODE, TWO_NODES], ids=["one node", "two nodes"])
def test_there_is_a_fault_nearly_every_second(ground: Ground) -> None:
    assert all(len(plan(seed, 60, ground)) >= 54 for seed in SEEDS)


@pytest.mark.parametrize("ground", [ONE_NODE, TWO_NODES], ids=["one node", "two nodes"])
def test_no_target_has_two_faults_at_once(ground: Ground) -> None:
    for seed in SEEDS:
        ends: dict[str, float] = {}
        for strike in sorted(plan(seed, 60, ground), key=lambda strike: strike.at_s):
            assert strike.at_s > ends.get(strike.target, 0.0)
            ends[strike.target] = strike.at_s + strike.lasts_s


@pytest.mark.parametrize("ground", [ONE_NODE, TWO_NODES], ids=["one node", "two nodes"])
def test_no_worker_is_kept_away_for_longer_than_its_grace(ground: Ground) -> None:
    for seed in SEEDS:
        strikes = sorted(plan(seed, 60, ground), key=lambda strike: strike.at_s)
        for worker in range(1, ground.workers + 1):
            begun = ended = 0.0
            for strike in (strike for strike in strikes if keeps_away(strike, worker)):
                if strike.at_s > ended:
                    begun = strike.at_s
                ended = max(ended, strike.ends_s)
                assert ended - begun <= MAX_OUTAGE_S


def test_all_kinds_of_faults_and_targets_come_up() -> None:
    strikes = [strike for seed in SEEDS for strike in plan(seed, 60, TWO_NODES)]
    assert {strike.kind for strike in strikes} == KINDS | {"db_restart"}
    numbered = {f"{what}-{number}" for what in ("worker", "model", "link") for number in range(1, 6)}
    nodes = {f"{what}-{number}" for what in ("server", "client") for number in (1, 2)}
    assert {strike.target for strike in strikes} == numbered | nodes | {"database"}


def test_what_cannot_be_done_is_not_planned() -> None:
    strikes = [strike for seed in SEEDS for strike in plan(seed, 60, Ground(fills_disk=False))]
    assert {strike.kind for strike in strikes} == KINDS - {"disk_full"}
