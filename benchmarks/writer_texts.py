"""What writers read in the benchmark: held-out texts to foresee, a prompt to go on from, and texts to rewrite."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edgescribe.errors import DataError
from edgescribe.sdk.labelled_text import DataReport, read_rows
from tokenizers import Tokenizer

LEAD_WORDS = 24
"""Words at the beginning of a text that are read and not scored."""

LEAST_WORDS = 60
TASKS = (
    "Rewrite the following text. Keep all that it says.\n\n{text}",
    "Summarise the following text. Use its own words.\n\n{text}",
)


@dataclass(frozen=True)
class Window:
    """A text to foresee: ``lead`` is read, ``rest`` is scored; their tokens ``ids``, the lead's ``lead_tokens``."""

    lead: str
    rest: str
    ids: list[int]
    lead_tokens: int


def read_texts(path: Path) -> list[str]:
    """The texts of a ``.jsonl`` or ``.jsonl.gz`` file (field ``text``), or the paragraphs of a ``.txt`` file.

    Raises:
        DataError: it cannot be read.
    """
    if path.suffix == ".txt":
        try:
            content = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        return [" ".join(part.split()) for part in content.split("\n\n") if part.strip()]
    return [row.text for row in read_rows(path, ("text",), DataReport())]


def windows(tokenizer: Tokenizer, texts: Sequence[str], tokens: int, longest: int) -> list[Window]:
    """Texts of at most ``longest`` tokens, until so many tokens are to be scored.

    Raises:
        DataError: the texts have fewer.
    """
    found, scored = [], 0
    for text in texts:
        words = text.split(" ")
        if len(words) < LEAST_WORDS:
            continue
        lead, rest = " ".join(words[:LEAD_WORDS]), " " + " ".join(words[LEAD_WORDS:])
        first, second = tokens_of(tokenizer, lead), tokens_of(tokenizer, rest)
        if len(first) + len(second) > longest:
            continue
        found.append(Window(lead, rest, first + second, len(first)))
        scored += len(second)
        if scored >= tokens:
            return found
    raise DataError(f"the texts have {scored} tokens to score, in texts of {LEAST_WORDS} words or more; {tokens} are "
                    "needed: name a larger file with --texts")  # fmt: skip


def scored_tokens(found: Sequence[Window]) -> int:
    """How many tokens of the windows are scored."""
    return sum(len(window.ids) - window.lead_tokens for window in found)


def save_windows(found: Sequence[Window], path: Path) -> None:
    """As ``writer_process.py`` reads them."""
    path.write_text(json.dumps([asdict(window) for window in found]), encoding="utf-8")


def prompt(tokenizer: Tokenizer, texts: Sequence[str], tokens: int) -> str:
    """A text of exactly so many tokens.

    Raises:
        DataError: none can be made of the texts.
    """
    for start in range(len(texts)):
        ids = tokens_of(tokenizer, " ".join(texts[start : start + tokens]))[:tokens]
        text = tokenizer.decode(ids, skip_special_tokens=False)
        if len(ids) == tokens and tokens_of(tokenizer, text) == ids:
            return str(text)
    raise DataError(f"no prompt of {tokens} tokens can be made of the texts; name others with --texts")


def conversations(texts: Sequence[str], count: int) -> Iterator[list[dict[str, str]]]:
    """Requests to rewrite and to summarise, in turn, of ``count`` texts."""
    fit = [text for text in texts if LEAST_WORDS <= len(text.split()) <= 2 * LEAST_WORDS]
    for number, text in enumerate(fit[:count]):
        yield [{"role": "user", "content": TASKS[number % len(TASKS)].format(text=text)}]


def tokens_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """A text's tokens, without special ones."""
    return list(tokenizer.encode(text, add_special_tokens=False).ids)
