"""Which numbers, dates and names of a summary count as its source's."""

from __future__ import annotations

import pytest
from edgescribe.converters.faithfulness import entities
from hypothesis import example, given
from hypothesis import strategies as st


def found(summary: str, source: str) -> dict[str, bool]:
    return {entity.text: entity.supported for entity in entities(summary, source)}


@pytest.mark.parametrize(
    ("summary", "source"),
    [
        ("It has 1,000 rows.", "it has 1000 rows"),
        ("It has 1000 rows.", "it has 1 000 rows"),
        ("It has 1000 rows.", "es hat 1.000 Zeilen"),
        ("It costs 3.5 litres.", "es kostet 3,5 l"),
        ("It grew by 5%.", "it grew by five percent"),
        ("It grew by 5 %.", "It grew by 5.0 per year"),
        ("They lost $3 million.", "they lost 3,000,000 dollars"),
        ("They lost 3 million.", "they lost $3,000,000"),
        ("twenty-one people", "21 people"),
        ("the 21st place", "place 21"),
        ("200 people", "two hundred people"),
        ("at 2:30 pm", "at 14:30"),
        ("at 10:30", "at 10.30 a.m. we met"),
        ("at 3 pm", "15:00"),
        ("In 2024 it rained.", "on 12 March 2024 it rained"),
        ("On 12 March 2024 it rained.", "2024-03-12: rain"),
        ("On March 12th, 2024 it rained.", "12.3.2024 Regen"),
        ("In March 2024 it rained.", "on 12 march 2024"),
        ("on 3/12/2024", "on 12 March 2024"),
        ("on 12/3/2024", "on 12 March 2024"),
        ("预算500万", "the budget is 5,000,000"),
        ("在2024年3月12日", "2024-03-12"),
        ("says Anna Müller", "ANNA MÜLLER says"),
        ("says Anna Müller's team", "anna müller has a team"),
        ("in the EU", "in the European Union"),
        ("by NASA", "by the National Aeronautics and Space Administration"),
        ("version 1.2.3", "version 1.2.3"),
        ("-5 degrees", "5 degrees below zero"),
    ],
)
def test_what_the_source_has(summary: str, source: str) -> None:
    entries = found(summary, source)
    assert entries
    assert all(entries.values()), entries


@pytest.mark.parametrize(
    ("summary", "source"),
    [
        ("It has 1,000 rows.", "it has 1001 rows"),
        ("It grew by 5%.", "it grew by 5 km"),
        ("They lost $3 million.", "they lost 3 million euros"),
        ("They lost $3 million.", "they lost 3 billion"),
        ("at 2:30 pm", "at 2:30"),
        ("at 10:30", "it is 630"),
        ("On 12 March 2024 it rained.", "on 13 March 2024 it rained"),
        ("On 12 March 2024 it rained.", "in March 2024 it rained on"),
        ("In 2025 it rained.", "on 12 March 2024 it rained"),
        ("says Anna Bell", "says Anna"),
        ("in the EU", "in the union of Europe"),
        ("so IBM agreed", "so they agreed"),
        ("IBM agreed", "they agreed"),
    ],
)
def test_what_the_source_has_not(summary: str, source: str) -> None:
    entries = found(summary, source)
    assert entries
    assert not all(entries.values()), entries


def test_words_at_a_sentences_beginning_are_no_names() -> None:
    assert found("Budget approved. Next they met! \nAgreed: Then it ended. - Good", "x") == {}
    assert found("The Navy came. I'm here and OK.", "navy") == {"Navy": True}
    assert found("Anna Bell left.", "anna bell") == {"Anna Bell": True}


def test_one_of_them_is_no_number_and_may_no_month() -> None:
    assert found("one of them may 5", "5") == {"5": True}


def test_each_is_told_once_with_its_kind() -> None:
    told = [(entity.kind, entity.text) for entity in entities("We pay 5 to Rome and 5 to Rome on 1 May 2024.", "")]
    assert told == [("number", "5"), ("date", "1 May 2024"), ("name", "Rome")]


@given(st.text(max_size=200), st.text(max_size=200))
@example("³ ٣٤ 99999999999999999999999 1,,2 1.2.3.4,5 $ € 31.31.0000 99:99 0/0/0000", "")
def test_any_text_is_looked_through(summary: str, source: str) -> None:
    entities(summary, source)


@example("€A0月")
@given(st.text(alphabet="AbcÄé 0123456789.,:/-%$€km'’ \n年月日三", max_size=80))
def test_a_text_has_all_that_stands_in_it(text: str) -> None:
    assert all(entity.supported for entity in entities(text, text))
