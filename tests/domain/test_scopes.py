"""What a worker token may be limited to."""

import msgspec
import pytest

from cogflare.domain.scopes import MAX_MODELS, Models, covers, named


def test_no_limit_covers_everything_and_an_empty_one_nothing() -> None:
    assert covers(None, "ada/noop")
    assert not covers((), "ada/noop")


def test_a_model_is_covered_by_its_name_or_by_all_of_its_owner() -> None:
    assert covers(("ada/noop", "bob/*"), "ada/noop")
    assert covers(("ada/noop", "bob/*"), "bob/anything")
    for model in ("ada/noop2", "ada/*", "ad/noop", "bobby/x", "bob", "*/x", ""):
        assert not covers(("ada/noop", "bob/*"), model), model


def test_the_models_that_are_named() -> None:
    assert named(("ada/noop", "bob/*", "eve/x")) == ["ada/noop", "eve/x"]


@pytest.mark.parametrize(
    "bad", [[], ["*/*"], ["ada"], ["ada/"], ["/x"], ["ada/x*"], ["a/b/c"], ["a/b\n"], ["*"], ["a/b"] * 101]
)
def test_what_is_no_limit(bad: list[str]) -> None:
    assert len(bad) <= MAX_MODELS + 1
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(bad, Models)
