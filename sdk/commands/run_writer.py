"""``edgescribe run`` with a writer: each text answered or gone on from; without texts, a conversation."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import Result, figure, is_json, note
from .texts import NumberedText

if TYPE_CHECKING:
    from ..generation import Generation
    from ..writer import Prompt, Writer


WRITING_OPTIONS = ("max_new_tokens", "temperature", "seed", "stop", "system", "plain", "context")
"""Options of the command that :func:`write_texts` takes."""


def write_texts(
    bundle: Path,
    rows: Iterable[NumberedText],
    opened: Mapping[str, Any],
    *,
    max_new_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    stop: tuple[str, ...],
    system: str | None,
    plain: bool,
    context: int | None,
) -> Iterator[Result]:
    """Write to each text; with no rows (an empty tuple), chat on the terminal until its input ends.

    Args:
        opened: options of :func:`~edgescribe.sdk.load.load_writer`.
        plain: go on from a text even where the writer could answer it.
    """
    from ..load import load_writer

    options: dict[str, Any] = {"temperature": temperature, "seed": seed, "stop": stop}
    if max_new_tokens is not None:
        options["max_new_tokens"] = max_new_tokens
    with load_writer(bundle, context=context, **opened) as writer:
        answers = writer.chats and not plain
        if system is not None and not answers:
            raise click.UsageError("--system is for a writer that chats, without --plain")
        used = writer.effective
        note(
            f"{writer.info.name}: {used.runtime} {used.engine_version} on {used.device}, {writer.info.precision}, "
            f"{used.threads} thread{'s' if used.threads != 1 else ''}, {writer.context} tokens of context"
        )
        if rows == ():
            yield from _converse(writer, system, answers, options)
            return
        for row in rows:
            prompt: Prompt = _messages(system, [("user", row.text)]) if answers else row.text
            yield _written(row, prompt, _shown(writer, prompt, options))


def _converse(writer: Writer, system: str | None, answers: bool, options: dict[str, Any]) -> Iterator[Result]:
    note("Write a line; Ctrl-C stops the writer, Ctrl-D ends." if answers else "Write a beginning; Ctrl-D ends.")
    turns: list[tuple[str, str]] = []
    for number, text in enumerate(_lines(), 1):
        turns.append(("user", text))
        prompt: Prompt = _messages(system, turns) if answers else text
        while answers and len(turns) > 1 and len(writer.prompt_tokens(prompt)) > writer.context * 3 // 4:
            del turns[:2]  # the oldest question and its answer leave first
            prompt = _messages(system, turns)
        written = _shown(writer, prompt, options)
        turns.append(("assistant", written.text))
        yield _written(NumberedText(number, text), prompt, written)


def _lines() -> Iterator[str]:
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            print(file=sys.stderr)
            return
        if line.strip():
            yield line.strip()


def _messages(system: str | None, turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [{"role": role, "content": content} for role, content in turns]


def _shown(writer: Writer, prompt: Prompt, options: dict[str, Any]) -> Generation:
    """Write, showing each piece as it comes unless JSON is asked for. Ctrl-C ends this text alone where it is shown."""
    quiet = is_json()
    with closing(writer.stream(prompt, **options)) as writing:
        try:
            for piece in writing:
                if not quiet:
                    click.echo(piece, nl=False)
        except KeyboardInterrupt:
            if quiet or not sys.stdin.isatty():
                raise
        writing.close()
        return writing.result


def _written(row: NumberedText, prompt: Prompt, found: Generation) -> Result:
    timings = found.timings
    data = {
        "line": row.line,
        "text": row.text,
        "written": found.text,
        "finish_reason": found.finish_reason,
        "prompt_tokens": found.prompt_tokens,
        "new_tokens": len(found.tokens),
        "seed": found.seed,
        "first_token_ms": timings.first_token * 1000,
        "tokens_per_s": timings.tokens_per_s,
    }
    if not is_json():
        speed = f", {figure(timings.tokens_per_s)} tokens/s" if timings.tokens_per_s else ""
        count = f"{len(found.tokens)} token{'s' if len(found.tokens) != 1 else ''}"
        note(f"\n{count}, the first after {figure(timings.first_token * 1000)} ms{speed}")
    return Result(data, "")
