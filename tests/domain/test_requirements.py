"""What models require: how it is read, what a machine lacks, and how that is said."""

import msgspec
import pytest

from cogflare.domain.requirements import Requirements, parse, shown, unmet

# Memory in units of 2^20 bytes, as nvidia-smi shows it of cards that are sold under these numbers.
CARDS = {
    (8, "GeForce RTX 3070"): 8_192,
    (12, "GeForce RTX 3060"): 12_288,
    (16, "Tesla T4, with error correction"): 15_109,
    (24, "A10"): 23_028,
    (24, "GeForce RTX 4090"): 24_564,
    (48, "L40S"): 46_068,
    (80, "H100"): 81_559,
    (141, "H200"): 143_771,
}


@pytest.mark.parametrize(("named", "vram_mb"), CARDS.items())
def test_a_card_meets_the_number_it_is_sold_under_and_not_the_next(named: tuple[int, str], vram_mb: int) -> None:
    sold, _ = named
    assert unmet(Requirements(sold), [vram_mb], ()) == ""
    assert unmet(Requirements(sold * 1.15), [vram_mb], ()) != ""


def test_what_is_lacking_is_said() -> None:
    big = Requirements(24, ("fast", "eu"))
    assert unmet(big, [8_192], ["eu"]) == "lacks 24 GB of VRAM (has 8) and the tag fast"
    assert unmet(big, [], ["fast", "eu"]) == "lacks 24 GB of VRAM (has no GPU)"
    assert unmet(big, [8_192, 24_564], ["eu", "fast", "home"]) == ""
    assert unmet(Requirements(tags=("a", "b", "c")), [], []) == "lacks the tag a, the tag b and the tag c"
    assert unmet(Requirements(0.5), [8_192], []) == ""
    assert "(has 8)" in unmet(Requirements(16), [8_192, 8_192], []), "cards are not added up"


def test_a_worker_that_tells_nothing_meets_no_requirement() -> None:
    assert unmet(Requirements(24, ("fast",)), None, ()) == (
        "does not say whether it has 24 GB of VRAM and the tag fast (its agent tells nothing of its machine)"
    )
    assert unmet(Requirements(), None, ()) == ""


def test_what_is_stored_is_read() -> None:
    assert parse(None) == parse("no JSON") == parse("[]") == Requirements()
    wanted = Requirements(24.5, ("fast",))
    assert parse(msgspec.json.encode(wanted).decode()) == wanted
    assert shown(wanted) == "24.5 GB of VRAM and the tag fast"


@pytest.mark.parametrize(
    "text",
    [
        '{"min_vram_gb": 0}',
        '{"min_vram_gb": -1}',
        '{"min_vram_gb": "24"}',
        '{"tags": ["two words"]}',
        '{"tags": [""]}',
        '{"tags": ["a\\n"]}',
        '{"tags": "fast"}',
        '{"vram": 24}',
    ],
)
def test_what_is_no_requirement_is_refused(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=Requirements)
