"""``edgescribe run``: classify, tag, embed, write or summarise with a bundle."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import Result, command, figure, note, warn
from .choices import artifact_options, bundle_argument
from .texts import NumberedText, read_texts

if TYPE_CHECKING:
    from ..student import Student
    from .run_summarizer import Document


@command(
    epilog="Exactly one of --text, --input and a pipe on stdin gives the texts. "
    "With --json each text's answer is a line of its own. To a summariser a pipe, or a file that is no data file, is "
    "one text: a transcript (WebVTT, SRT, lines of Name: words) or any other, in parts where it is long."
)
@bundle_argument
@click.option("--text", "texts", multiple=True, help="A text; may be given several times.")
@click.option(
    "--input",
    "source",
    type=click.Path(path_type=Path),
    help="A file: .jsonl or .csv (.gz too), else a text a line; - is stdin.",
)
@click.option("--top-k", type=click.IntRange(1), default=1, show_default=True, help="Labels to show for each text.")
@click.option("--batch-size", type=click.IntRange(1, 1024), default=1, show_default=True, help="Texts run at once.")
@click.option(
    "--max-new-tokens", type=click.IntRange(1), help="To write.  [default: 256; of a summariser, the bundle's]"
)
@click.option("--temperature", type=click.FloatRange(0, 100), help="0: the likeliest.  [default: the bundle's]")
@click.option("--seed", type=click.IntRange(0), help="The same seed gives the same text.")
@click.option("--stop", multiple=True, help="A string that ends what is written. May be repeated.")
@click.option("--system", help="Of a writer that chats: what it is to be.")
@click.option("--plain", is_flag=True, help="Of a writer that chats: go on from the text instead of answering it.")
@click.option("--context", type=click.IntRange(2), help="Tokens of prompt and text together; of a summary alone.")
@click.option("--min-new-tokens", type=click.IntRange(0), help="Of a summariser: to write at least.")
@click.option("--num-beams", type=click.IntRange(1, 32), help="Of a summariser: summaries to choose from; 1: greedy.")
@click.option("--length-penalty", type=click.FloatRange(-16, 16), help="Of beams: over 0 favours long summaries.")
@click.option(
    "--no-repeat-ngram", "no_repeat_ngram_size", type=click.IntRange(0), help="Of a summariser: tokens not to repeat."
)
@click.option("--lookup/--no-lookup", default=None, help="Of a summariser: guess by copying from the text.")
@click.option(
    "--long/--no-long", default=None, help="Of a summariser: in parts.  [default: long files and pipes alone]"
)
@artifact_options
def run(
    bundle: Path,
    texts: tuple[str, ...],
    source: Path | None,
    top_k: int,
    batch_size: int,
    runtime: str | None,
    precision: str | None,
    device: str | None,
    threads: int,
    **writing: Any,
) -> Iterator[Result]:
    """Classify, tag, embed or summarise texts with BUNDLE, or write, whichever it was made for.

    A writer answers each text, or without any on a terminal, chats.
    """
    from ..bundle import task_of
    from ..load import load

    task = task_of(bundle)
    opened: dict[str, Any] = {"runtime": runtime, "precision": precision, "device": device, "threads": threads}

    if texts and source is not None:
        raise click.UsageError("--text and --input exclude each other")
    if task == "summarize":
        from .run_summarizer import SUMMARY_OPTIONS, summarize_texts

        options = {name: writing[name] for name in SUMMARY_OPTIONS}
        found = summarizers_texts(texts, source)
        opened["context"] = writing["context"]
        yield from summarize_texts(bundle, found, opened, long=writing["long"], options=options)
        return
    rows: Iterable[NumberedText]
    if texts:
        rows = (NumberedText(number, text) for number, text in enumerate(texts, 1))
    else:
        stdin = sys.stdin.buffer
        if source is None and stdin.isatty() and task == "generate":
            rows = ()
        elif source is None and stdin.isatty():
            raise click.UsageError("no texts: give --text, --input, or pipe them in")
        else:
            rows = read_texts(stdin if source is None or source == Path("-") else source, warn)
    if task == "generate":
        from .run_writer import WRITING_OPTIONS, write_texts

        yield from write_texts(bundle, rows, opened, **{name: writing[name] for name in WRITING_OPTIONS})
        return
    with load(bundle, **opened) as student:
        used = student.effective
        note(
            f"{student.info.name}: {used.runtime} {used.engine_version} on {used.device}, {student.info.precision}, "
            f"{used.threads} thread{'s' if used.threads != 1 else ''}"
        )
        cut = 0
        for batch in _batches(rows, batch_size):
            for result in _answers(student, batch, top_k):
                cut += bool(result.data.get("truncated"))
                yield result
        if cut:
            which = "1 text was" if cut == 1 else f"{cut} texts were"
            warn(f"{which} longer than {student.info.max_tokens} tokens; the end was left out")


def summarizers_texts(texts: tuple[str, ...], source: Path | None) -> Iterable[NumberedText | Document]:
    """What a summariser is given: texts and rows of data files one by one, other files and a pipe as a whole."""
    from ..labelled_text import SUFFIXES
    from .run_summarizer import Document

    if texts:
        return [NumberedText(number, text) for number, text in enumerate(texts, 1)]
    stdin = sys.stdin.buffer
    if source is None and stdin.isatty():
        raise click.UsageError("no text: give --text, --input, or pipe it in")
    if source is None or source == Path("-"):
        return [Document(stdin)]
    return read_texts(source, warn) if source.name.lower().endswith(SUFFIXES) else [Document(source)]


def _batches(rows: Iterable[NumberedText], size: int) -> Iterator[list[NumberedText]]:
    remaining = iter(rows)
    while batch := list(islice(remaining, size)):
        yield batch


def _answers(student: Student, batch: list[NumberedText], top_k: int) -> Iterator[Result]:
    texts = [row.text for row in batch]
    if student.info.task == "classify":
        for row, found in zip(batch, student.classify(texts, top_k, batch_size=len(texts)), strict=True):
            data = {"line": row.line, "text": row.text, "label": found.label, "score": found.score}
            data |= {"scores": found.scores, "truncated": found.truncated}
            shown = "  ".join(f"{label} {score:.3f}" for label, score in found.scores.items())
            yield Result(data, f"{shown}\t{_short(row.text)}")
    elif student.info.task == "tag":
        for row, tags in zip(batch, student.tag(texts, batch_size=len(texts)), strict=True):
            keys = ("label", "text", "start", "end", "score")
            entries = [{key: getattr(tag, key) for key in keys} for tag in tags]
            shown = "  ".join(f"{t.label}:{t.text}" for t in tags) or "–"
            yield Result({"line": row.line, "text": row.text, "tags": entries}, f"{shown}\t{_short(row.text)}")
    else:
        for row, vector in zip(batch, student.embed(texts, batch_size=len(texts)), strict=True):
            start = " ".join(figure(float(x)) for x in vector[:4])
            text = f"[{start} … {len(vector)} numbers]\t{_short(row.text)}"
            yield Result({"line": row.line, "text": row.text, "embedding": vector}, text)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:59] + "…"
