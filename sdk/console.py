"""How every command of ``edgescribe`` behaves on a terminal and in a script; commands are written with :func:`command`.

- Data goes to stdout; progress, warnings and errors go to stderr (:func:`progress`, :func:`warn`, :func:`note`).
- A command returns a :class:`Result`, or an iterable of them where answers come one by one, and prints nothing
  itself. ``--json``, which :func:`command` adds, prints ``Result.data`` instead of ``Result.text``: one indented
  document for a single result, one line each for an iterable (JSON Lines).
- Errors: one message on stderr in words. With ``--json`` stdout also gets
  ``{"error": {"type": …, "message": …, "exit_code": …}}``, usage errors included, so that a script need read only
  stdout. ``--debug`` (or ``EDGESCRIBE_DEBUG=1``) adds the traceback on stderr.
- Exit codes: 0 done; 1 a fault of ours; 2 wrong usage; 3 over budget; 4 bad input; 5 an engine or extra is
  missing; 130 interrupted. They are the ``exit_code`` of the classes in :mod:`edgescribe.errors`; a command whose
  answer is itself a failure (``check``) sets ``Result.exit_code``. A reader that goes away (``| head``) is no error.
  A command that keeps its state when interrupted raises ``KeyboardInterrupt`` with words that tell so.
- ``NO_COLOR`` turns colours off, and there are none off a terminal; bars are drawn on a terminal alone.
- A command's module imports click and this module at the top and the rest inside the function, so that help and
  completion are quick and need no extra. A package that is then missing becomes a
  :class:`~edgescribe.errors.MissingExtraError` (exit code 5) by itself.

An example, with click's own options below ours::

    @command()
    @click.argument("bundle", type=click.Path(path_type=Path))
    def inspect(bundle: Path) -> Result:
        '''Tell what is in BUNDLE.'''
        from ..bundle import read_bundle
        manifest = read_bundle(bundle).manifest
        return Result(data=manifest, text=manifest.name)
"""

from __future__ import annotations

import functools
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from ..errors import EdgescribeError, MissingExtraError

INTERRUPTED = 130
_ERASE_LINE_ABOVE = "\x1b[1A\x1b[2K"
_ENGINES = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "ai_edge_litert": "litert",
    "tflite_runtime": "litert",
}
_WORKBENCH = (
    "torch", "transformers", "accelerate", "safetensors", "onnx", "flatbuffers", "sklearn", "matplotlib",
    "jinja2", "tqdm", "sentencepiece", "google", "huggingface_hub",
)  # fmt: skip
_EXTRA_OF_PACKAGE = _ENGINES | dict.fromkeys(_WORKBENCH, "convert")


@dataclass(frozen=True)
class Result:
    """What a command found: ``data`` for ``--json`` (whatever msgspec encodes), ``text`` for a person."""

    data: Any
    text: str
    exit_code: int = 0


@dataclass
class Settings:
    """The options that every command has. Kept as the click context's object."""

    as_json: bool = False
    debug: bool = False


Answer = Result | Iterable[Result]
_F = TypeVar("_F", bound=Callable[..., Answer])


def command(name: str | None = None, **attributes: Any) -> Callable[[_F], click.Command]:
    """Make a click command of a function that returns a :class:`Result` or an iterable of them.

    Args:
        name: the command's name; the function's by default.
        attributes: as for :func:`click.command`.
    """

    def decorate(function: _F) -> click.Command:
        @functools.wraps(function)
        def invoke(*args: Any, **kwargs: Any) -> None:
            answer = function(*args, **kwargs)
            code = _show(answer, _settings())
            if code:
                click.get_current_context().exit(code)

        as_command: Callable[[Callable[..., None]], click.Command] = click.command(
            name or function.__name__.replace("_", "-"), **attributes
        )
        made = as_command(invoke)
        made.params += [_switch("as_json", "--json", "Print the result as JSON."), debug_option()]
        return made

    return decorate


def debug_option() -> click.Option:
    """The option ``--debug``, for the group."""
    return _switch("debug", "--debug", "On an error, print the traceback too.")


def run_cli(group: click.Command, arguments: Sequence[str], prog_name: str) -> int:
    """Run the command line and tell its exit code; every error is printed here, none passes through."""
    before_dashes = arguments[: arguments.index("--")] if "--" in arguments else arguments
    settings = Settings(
        as_json="--json" in before_dashes,
        debug="--debug" in before_dashes or os.environ.get("EDGESCRIBE_DEBUG", "") not in ("", "0"),
    )
    colour = False if os.environ.get("NO_COLOR") else None
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: warn(str(message))
        return _run(group, arguments, prog_name, settings, colour)


def _run(
    group: click.Command, arguments: Sequence[str], prog_name: str, settings: Settings, colour: bool | None
) -> int:
    try:
        code = group.main(list(arguments), prog_name=prog_name, standalone_mode=False, obj=settings, color=colour)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (BrokenPipeError, _ReaderGoneError):
        _leave_stdout()
        return 0
    except (KeyboardInterrupt, click.exceptions.Abort) as error:
        return _fail("Interrupted", _last_words(error), INTERRUPTED, settings)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return 2
    except click.ClickException as error:
        if isinstance(error, click.UsageError) and error.ctx is not None:
            click.echo(error.ctx.get_usage(), err=True)
            hint = f"Try '{error.ctx.command_path} --help'."
            return _fail("UsageError", f"{error.format_message()} {hint}", 2, settings)
        return _fail(type(error).__name__, error.format_message(), 2, settings)
    except EdgescribeError as error:
        return _fail(type(error).__name__, str(error), error.exit_code, settings)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in _EXTRA_OF_PACKAGE:
            missing = MissingExtraError(package, _EXTRA_OF_PACKAGE[package])
            return _fail("MissingExtraError", str(missing), missing.exit_code, settings)
        return _fault(error, settings)
    except Exception as error:  # noqa: BLE001 - the last resort: a fault of ours is told in one line
        return _fault(error, settings)


def encode_json(data: Any, indent: int = 0) -> str:
    """JSON text of whatever msgspec encodes, numpy's scalars and arrays and paths; NaN and infinity become null."""
    import msgspec

    text = msgspec.json.encode(data, enc_hook=_encode_other)
    return (msgspec.json.format(text, indent=indent) if indent else text).decode()


def is_json() -> bool:
    """Whether this command's answer is to be JSON, so that nothing else may go to stdout."""
    return _settings().as_json


def note(message: str) -> None:
    """Tell a person something by the way, on stderr."""
    click.echo(message, err=True)


def warn(message: str) -> None:
    """Warn a person, on stderr."""
    click.echo(click.style("warning: ", fg="yellow") + message, err=True, color=_colour())


@contextmanager
def progress(
    label: str, length: int, detail: Callable[[], str] | None = None
) -> Iterator[Callable[[int], None]]:
    """A bar with time left on stderr, drawn only on a terminal; yields what moves it on by so many steps.

    It is gone again when the work is done or has failed. What ``detail`` gives stands behind it.
    """
    show = None if detail is None else lambda _: detail()
    drawn = sys.stderr.isatty()
    try:
        with click.progressbar(
            length=length, label=label, file=sys.stderr, hidden=not drawn, width=24, color=_colour(),
            item_show_func=show,
        ) as bar:  # fmt: skip
            yield bar.update
    finally:
        if drawn and os.environ.get("TERM") != "dumb":
            sys.stderr.write(_ERASE_LINE_ABOVE)
            sys.stderr.flush()


@contextmanager
def bar_of_parts(label: str, detail: Callable[[], str] | None = None) -> Iterator[Callable[[float], None]]:
    """As :func:`progress`, for work that tells the part of it that is done (0 to 1); it never runs backwards."""
    steps = 1000
    with progress(label, steps, detail) as advance:
        done = 0

        def show(part: float) -> None:
            nonlocal done
            now = min(steps, max(done, int(part * steps)))
            if now > done:
                advance(now - done)
                done = now

        yield show
        show(1.0)


def paint(text: str, colour: str) -> str:
    """Colour for a word of a result; taken out again off a terminal and with ``NO_COLOR``."""
    return click.style(text, fg=colour)


def table(rows: Sequence[Sequence[object]], header: Sequence[str] = ()) -> str:
    """Columns aligned by spaces: numbers to the right (floats with three significant digits), words to the left."""
    texts = [[_cell(value) for value in row] for row in rows]
    titled = ([list(header)] if header else []) + texts
    if not titled:
        return ""
    widths = [max(len(click.unstyle(row[column])) for row in titled) for column in range(len(titled[0]))]
    right = [
        bool(rows) and all(value is None or isinstance(value, (int, float)) for value in column)
        for column in zip(*rows, strict=True)
    ] or [False] * len(widths)
    lines = (
        "  ".join(
            text.rjust(width) if to_right else text + " " * (width - len(click.unstyle(text)))
            for text, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in titled
    )
    return "\n".join(lines)


def figure(value: float) -> str:
    """A measured number for a person: three significant digits, never in powers of ten."""
    if value == 0 or not abs(value) < float("inf"):
        return f"{value:g}"
    digits = 2
    while digits > 0 and abs(value) >= 10 ** (3 - digits):
        digits -= 1
    if abs(value) < 0.1:
        return f"{value:.2g}" if abs(value) >= 1e-4 else f"{value:.1e}"
    return f"{value:.{digits}f}"


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return figure(value) if isinstance(value, float) else str(value)


def _switch(parameter: str, flag: str, text: str) -> click.Option:
    def keep(context: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            setattr(context.ensure_object(Settings), parameter, True)

    return click.Option([flag, parameter], is_flag=True, expose_value=False, is_eager=True, help=text, callback=keep)


def _settings() -> Settings:
    return click.get_current_context().ensure_object(Settings)


def _colour() -> bool | None:
    return False if os.environ.get("NO_COLOR") else None


class _ReaderGoneError(Exception):
    """Whoever read our stdout has closed it."""


def _show(answer: Answer, settings: Settings) -> int:
    if isinstance(answer, Result):
        _print(encode_json(answer.data, indent=2) if settings.as_json else answer.text)
        return answer.exit_code
    code = 0
    for result in answer:
        _print(encode_json(result.data) if settings.as_json else result.text)
        code = code or result.exit_code
    return code


def _print(text: str) -> None:
    try:
        click.echo(text)
    except BrokenPipeError as error:
        raise _ReaderGoneError from error  # click would end with 1 for the other


def _encode_other(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _fail(kind: str, message: str, code: int, settings: Settings) -> int:
    if settings.debug and code != INTERRUPTED:
        traceback.print_exc()
    try:
        if settings.as_json:
            click.echo(encode_json({"error": {"type": kind, "message": message, "exit_code": code}}))
            sys.stdout.flush()
    except BrokenPipeError:
        _leave_stdout()
    text = click.style("error: ", fg="red", bold=True) + message if code != INTERRUPTED else message
    click.echo(text, err=True, color=_colour())
    return code


def _last_words(error: BaseException) -> str:
    """What the command said of its interruption: click puts another error around its own."""
    return next((str(each) for each in (error, error.__cause__) if each is not None and str(each)), "interrupted")


def _fault(error: BaseException, settings: Settings) -> int:
    message = f"edgescribe failed: {type(error).__name__}: {error}"
    if not settings.debug:
        message += ". This is a fault of the program; --debug prints where"
    return _fail(type(error).__name__, message, 1, settings)


def _leave_stdout() -> None:
    """Send what is still buffered for a closed pipe nowhere, or Python complains about it on exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
