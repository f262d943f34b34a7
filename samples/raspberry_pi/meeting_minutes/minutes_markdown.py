"""Minutes as Markdown. What comes from the transcript is written so that it stays text, whatever signs are in it."""

from __future__ import annotations

import re

from minutes import Minutes, Quote, clock

_SIGNS = re.compile(r"([\\`*_\[\]<>|~&])")
_LINE_START = re.compile(r"^(\d+)(?=[.)](?:\s|$))|^(?=[#+=-])")


def as_markdown(minutes: Minutes, student: str) -> str:
    """The whole document.

    Args:
        minutes: what it says.
        student: who summarised, for the line below the title.
    """
    lines = [f"# {plain(minutes.title)}", "", f"*{_facts(minutes, student)}*", ""]
    if minutes.participants:
        lines += ["## Participants", "", *(f"- {plain(name)}" for name in minutes.participants), ""]
    lines += ["## Summary", "", plain(minutes.summary) or "There are no words in this transcript.", ""]
    if minutes.sections:
        lines += ["### By part", ""]
        for number, section in enumerate(minutes.sections, 1):
            time = "" if section.start is None else f"**{clock(section.start)}** "
            lines.append(f"{number}. {time}{plain(section.text)}")
        lines.append("")
    lines += ["## Decisions", ""]
    lines += [f"- {_quoted(quote)}" for quote in minutes.decisions] or ["None was found by its wording."]
    lines += ["", "## Action items", ""]
    for action in minutes.actions:
        who = f"**{plain(action.who)}**: " if action.who else ""
        due = f" ({plain(action.due)})" if action.due else ""
        lines += [f"- [ ] {who}{plain(action.what)}{due}", f"  > {_quoted(action.quote)}"]
    if not minutes.actions:
        lines.append("None was found by its wording.")
    lines.append("")
    if minutes.left_out:
        lines += [f"{minutes.left_out} more decisions and action items are left out.", ""]
    if minutes.faults:
        examples = "; ".join(plain(example) for example in minutes.examples)
        lines += [f"{minutes.faults} subtitles do not follow their format ({examples}).", ""]
    return "\n".join(lines)


def _facts(minutes: Minutes, student: str) -> str:
    facts = []
    if minutes.length is not None:
        facts.append(f"about {clock(minutes.length)} long")
    if minutes.participants:
        count = len(minutes.participants)
        facts.append(f"{count} people spoke" if count > 1 else "one person spoke")
    if minutes.reason in ("merged", "one-part"):
        facts.append(f"summarised by {plain(student)}: check it against the transcript")
    facts.append("decisions and action items are found by their wording")
    text = "; ".join(facts)
    return f"{text[:1].upper()}{text[1:]}."


def _quoted(quote: Quote) -> str:
    said = [plain(quote.speaker)] if quote.speaker else []
    if quote.start is not None:
        said.append(clock(quote.start))
    return f"“{plain(quote.text)}”" + (f" ({', '.join(said)})" if said else "")


def plain(text: str) -> str:
    """A text on one line whose signs mean nothing to Markdown or HTML."""
    text = _SIGNS.sub(r"\\\1", " ".join(text.split()))
    return _LINE_START.sub(lambda found: f"{found[1] or ''}\\", text)
