"""What is found in a transcript by its wording, and how the minutes are written down."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import edgescribe
import pytest
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    "sentence",
    [
        "We agreed to move the launch to May.",
        "So we've decided: May it is.",
        "Okay, let's go with the blue one.",
        "The budget was approved.",
        "Decision: we ship on Friday.",
        "It was agreed that nobody travels.",
        "That's settled then.",
        "Wir haben gestern beschlossen, das Budget zu kürzen.",
        "Wir einigen uns auf Mai.",
        "On a décidé de reporter la fête.",
        "我们决定下周发布。",
        "决议：下周发布",
    ],
)
def test_decisions(sentence: str) -> None:
    from cues import is_decision

    assert is_decision(sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "We have not decided yet.",
        "We haven't agreed on the price.",
        "I don't think we agreed on that.",
        "Have we decided?",
        "The agreed price is high.",
        "Wir haben noch nicht entschieden.",
        "我们还没决定。",
        "We go home.",
        "",
    ],
)
def test_no_decisions(sentence: str) -> None:
    from cues import is_decision

    assert not is_decision(sentence)


@pytest.mark.parametrize(
    ("sentence", "who", "what", "due"),
    [
        ("Bob, can you send the offer to Miller by Friday?", "Bob", "send the offer to Miller", "by Friday"),
        ("So Bob, please book the room for Thursday.", "Bob", "book the room", "for Thursday"),
        ("Can you check the numbers by next week, Carla?", "Carla", "check the numbers", "by next week"),
        ("Could you check them by Friday?", "", "check them", "by Friday"),
        ("I'll prepare the slides until tomorrow.", "Sam", "prepare the slides", "until tomorrow"),
        ("I will send it.", "Sam", "send it", ""),
        ("Sure, I can take the testing.", "Sam", "take the testing", ""),
        ("I'm going to look into the logs this afternoon.", "Sam", "look into the logs", "this afternoon"),
        ("Could you send me the list?", "", "send me the list", ""),
        ("Please update the wiki, Jens.", "Jens", "update the wiki", ""),
        ("And somebody has to cancel the hotel.", "", "cancel the hotel", ""),
        ("Then we'll close it by the end of the week.", "", "close it", "by the end of the week"),
        ("Jens should write to them before the 15th of June.", "Jens", "write to them", "before the 15th of June"),
        ("Anna Bell will call the supplier on Monday morning.", "Anna Bell", "call the supplier", "on Monday morning"),
        ("We need to fix the heating before December.", "", "fix the heating", "before December"),
        ("We have to order it in two weeks.", "", "order it", "in two weeks"),
        ("Action: order new chairs by 12 March.", "", "order new chairs", "by 12 March"),
        ("Action item: Bob to order chairs", "Bob", "order chairs", ""),
        ("To-do: clean up before 5 pm", "", "clean up", "before 5 pm"),
        ("Ich kümmere mich um den Raum bis Freitag.", "Sam", "den Raum", "bis Freitag"),
        ("Bob, kannst du bis Montag die Liste schicken?", "Bob", "die Liste schicken", "bis Montag"),
        ("Je vais appeler le client demain.", "Sam", "appeler le client", "demain"),
        ("我会在周五之前发报告。", "Sam", "发报告", "在周五之前"),
        ("由李雷负责预算。", "李雷", "负责预算", ""),
    ],
)
def test_tasks(sentence: str, who: str, what: str, due: str) -> None:
    from cues import find_task

    found = find_task(sentence, "Sam")
    assert found is not None
    assert (found.who, found.what, found.due) == (who, what, due)


@pytest.mark.parametrize(
    "sentence",
    [
        "It will rain tomorrow.",
        "This will be fun.",
        "They will come on Friday.",
        "I'll be there on Friday.",
        "I will just say this.",
        "I'll keep this short.",
        "Will you be able to test it, Tom?",
        "Anna will be there on Friday.",
        "We'll see.",
        "Could you say that again?",
        "We need to talk.",
        "Good morning.",
        "",
    ],
)
def test_no_tasks(sentence: str) -> None:
    from cues import find_task

    assert find_task(sentence, "Sam") is None


@given(st.text(max_size=200))
def test_any_sentence_is_looked_through(sentence: str) -> None:
    from cues import find_task, is_decision

    is_decision(sentence)
    find_task(sentence, "Sam")


class FirstWords:
    """Summarises by the first four words of a part."""

    def summarize_long(
        self,
        text: Iterable[edgescribe.Turn],
        *,
        on_progress: Callable[[edgescribe.LongProgress], None] | None = None,
    ) -> Iterator[edgescribe.LongSummary]:
        from edgescribe.sdk.long_text import summarize_long

        def words(part: str) -> str:
            return " ".join(part.split()[:4])

        def count(part: str) -> int:
            return 1 + len(part.split())

        return summarize_long(text, words, count, part_tokens=40, on_progress=on_progress)


def taken(text: str, title: str = "Fair") -> Any:
    from minutes import MinuteTaker

    report = edgescribe.TranscriptReport()
    taker = MinuteTaker(title, edgescribe.transcript_turns(text, report), report, FirstWords())
    for _ in taker.run():
        pass
    return taker.minutes


def test_minutes_of_a_meeting(meeting: str) -> None:
    minutes = taken(meeting)
    assert minutes.participants == ["Anna Bell", "Ravi Shah", "Carla Novak"]
    assert (minutes.length, minutes.reason) == (41, "merged")
    assert minutes.summary == "Anna Bell: Good morning."
    assert len(minutes.sections) > 1
    assert minutes.sections[0].start == 4
    assert [(quote.speaker, quote.text) for quote in minutes.decisions] == [
        ("Anna Bell", "Then let's go with hall 3."),
        ("Carla Novak", "We agreed to take the second one."),
    ]
    found = [(action.who, action.what, action.due, action.quote.start) for action in minutes.actions]
    assert found == [
        ("Ravi Shah", "sign the contract", "by Friday", 25),
        ("Ravi Shah", "send you the floor plan", "tomorrow", 32),
    ]


def test_markdown(meeting: str) -> None:
    from minutes_markdown import as_markdown

    text = as_markdown(taken(meeting), "tiny")
    assert text.startswith("# Fair\n\n*About 0:00:41 long; 3 people spoke; summarised by tiny: check it against")
    assert "\n## Participants\n\n- Anna Bell\n- Ravi Shah\n- Carla Novak\n" in text
    assert "\n## Summary\n\nAnna Bell: Good morning.\n\n### By part\n\n1. **0:00:04** Anna Bell: Good" in text
    assert "\n- “Then let's go with hall 3.” (Anna Bell, 0:00:25)\n" in text
    assert (
        "\n- [ ] **Ravi Shah**: sign the contract (by Friday)\n"
        "  > “Ravi, can you sign the contract by Friday?” (Anna Bell, 0:00:25)\n"
    ) in text
    assert text.endswith("\n")


def test_a_short_meeting_has_no_parts_and_says_what_was_not_found() -> None:
    from minutes_markdown import as_markdown

    minutes = taken("Anna: We talked about the garden for quite a while today.")
    assert (minutes.sections, minutes.reason) == ([], "one-part")
    text = as_markdown(minutes, "tiny")
    assert text.count("None was found by its wording.") == 2
    assert "*One person spoke; " in text
    assert "By part" not in text


@pytest.mark.parametrize("text", ["", "  \n"])
def test_nothing_has_minutes_of_nothing(text: str) -> None:
    from minutes_markdown import as_markdown

    assert "There are no words in this transcript." in as_markdown(taken(text), "tiny")


def test_signs_of_markdown_and_html_stay_text() -> None:
    from minutes_markdown import as_markdown, plain

    wild = "Anna: We agreed on `a` *b* _c_ [d](http://x) <img src=x onerror=alert(1)> | # e & ~f~."
    text = as_markdown(taken(wild, "# <b>Title</b>"), "tiny")
    assert "<img" not in text.replace("\\<img", "")
    assert text.startswith("# \\# \\<b\\>Title\\</b\\>")
    assert r"\`a\` \*b\* \_c\_ \[d\](http" in text
    for begins in ("# x", "- x", "+ x", "1. x", "12) x", "---", "=== x"):
        assert "\\" in plain(begins)
    assert plain("3.5 litres") == "3.5 litres"
    assert plain("a\n# b") == "a # b"


def test_subtitles_with_faults_are_told() -> None:
    from minutes_markdown import as_markdown

    minutes = taken("WEBVTT\n\n00:01.000 --> 00:xx\nAnna: These are a few words of hers.\n")
    assert minutes.faults == 1
    assert "1 subtitles do not follow their format (line 3: no times are in" in as_markdown(minutes, "tiny")


def test_first_names_become_whole_ones_where_that_is_sure() -> None:
    minutes = taken("Ann Bell: Bob, can you call them?\nBob Lee: Ann, can you?\nBob: Zoe, can you write?\n")
    assert [action.who for action in minutes.actions] == ["Bob", "Zoe"]
    minutes = taken("Ann Bell: Bob, can you call them?\nBob Lee: Yes, and Ann, can you write?\n")
    assert [action.who for action in minutes.actions] == ["Bob Lee", "Ann Bell"]


def test_more_finds_than_are_kept_are_counted() -> None:
    minutes = taken("".join(f"Anna: We agreed on point {number} of all.\n" for number in range(250)))
    assert len(minutes.decisions) == 200
    assert minutes.left_out == 50


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("2024-03-12_sales-meeting.vtt", "2024-03-12 sales meeting"),
        ("monday.txt", "Monday"),
        ("Budget (final).srt", "Budget (final)"),
        ("会议.txt", "会议"),
        ("noending", "Noending"),
    ],
)
def test_titles_from_names(name: str, title: str) -> None:
    from minutes import title_of

    assert title_of(name) == title
