"""Stop strings must be found however the text is cut into pieces, and nothing of them may go out."""

from __future__ import annotations

import pytest
from edgescribe.errors import UsageError
from edgescribe.sdk.stop_strings import StopStrings
from hypothesis import given
from hypothesis import strategies as st

LETTERS = st.text(alphabet="ab\n", max_size=30)


def fed(stops: list[str], pieces: list[str]) -> tuple[list[str], str | None]:
    search = StopStrings(stops)
    out = [search.feed(piece) for piece in pieces]
    if search.found is None:
        out.append(search.rest())
    return out, search.found


@given(st.lists(LETTERS, max_size=8), st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), max_size=4))
def test_text_ends_before_the_first_stop_string(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    out, found = fed(stops, pieces)
    if not ends:
        assert ("".join(out), found) == (text, None)
        return
    first = [stop for stop in stops if stop in text and text.find(stop) + len(stop) == min(ends)]
    assert found == max(first, key=len)
    assert "".join(out) == text[: min(ends) - len(found)]


@given(pieces=st.lists(LETTERS, max_size=8), stop=st.text(alphabet="ab", min_size=1, max_size=6))
def test_no_more_is_held_back_than_may_be_a_stop_string(pieces: list[str], stop: str) -> None:
    search = StopStrings([stop])
    given_text = out = ""
    for piece in pieces:
        given_text += piece
        out += search.feed(piece)
        if search.found is None:
            held = given_text[len(out) :]
            assert stop.startswith(held)
            assert held != stop


def test_stop_strings_across_pieces() -> None:
    assert fed(["\nUser:"], ["Yes", ".\n", "Us", "er", ": no"]) == (["Yes", ".", "", "", ""], "\nUser:")
    assert fed(["END"], ["EEN", "DE"])[0] == ["E", ""]
    assert fed(["ab"], ["a", "c", "a"]) == (["", "ac", "", "a"], None)


@pytest.mark.parametrize("wrong", [[""], [1], ["x" * 2000], ["a"] * 17])
def test_wrong_stop_strings(wrong: list[str]) -> None:
    with pytest.raises(UsageError):
        StopStrings(wrong)


def test_one_string_is_one_stop_string() -> None:
    assert fed("ab", ["xaby"]) == (["x"], "ab")  # type: ignore[arg-type]
