"""Conversations to prompts by the Jinja template of a bundle, which comes from outside and is not trusted.

It is rendered in Jinja's immutable sandbox, which keeps it from Python's attributes and from changing what it is given.
A sandbox does not keep a template from running for ever or filling the memory; so here everything that a template does
over and over, or that makes a text, is charged against a fixed amount of work, and the operations that could do much
at one stroke are left out. Needs the extra ``chat``.
"""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

from ..errors import BundleError, InputError, MissingExtraError

EXTRA = "chat"
Message = Mapping[str, Any]
"""``role`` (``system``, ``user``, ``assistant``, …) and ``content``, both texts."""

LONGEST_TEMPLATE = 100_000
MOST_WORK = 100_000
"""Units of work: one for a step of a loop, a call or a filter, and one for every 64 characters or items it gives."""

LONGEST_PROMPT = 2_000_000
"""Characters."""

_CHARACTERS_A_UNIT = 64

_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "int", "items",
    "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "safe",
    "select", "selectattr", "sort", "string", "title", "trim", "unique", "upper",
)  # fmt: skip
_METHODS = frozenset((
    "capitalize", "count", "endswith", "find", "get", "index", "isalnum", "isalpha", "isdigit", "islower", "isspace",
    "isupper", "items", "join", "keys", "lower", "lstrip", "removeprefix", "removesuffix", "replace", "rfind", "rsplit",
    "rstrip", "split", "splitlines", "startswith", "strip", "title", "upper", "values",
))  # fmt: skip
_PLAIN_TYPES = (str, dict, list, tuple, int, float, MappingProxyType)


class _RefusedError(Exception):
    """The template itself refuses the messages (``raise_exception``)."""


class _OverworkedError(Exception):
    """The template does more than it may."""


def check_messages(messages: object) -> list[dict[str, Any]]:
    """The messages as a list of plain dictionaries.

    Raises:
        InputError: they are not a list of mappings with the texts ``role`` and ``content``, or there are none.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise InputError("expected a text, or a list of messages with 'role' and 'content'; there is none")
    checked = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            raise InputError(f"message {number} is {type(message).__name__}, not a mapping with 'role' and 'content'")
        for name in ("role", "content"):
            if not isinstance(message.get(name), str):
                raise InputError(f"message {number} has no text as {name!r}; it needs 'role' and 'content'")
        checked.append({str(name): value for name, value in message.items()})
    return checked


class ChatTemplate:
    """A bundle's template. May be used from several threads at once.

    Args:
        source: the Jinja template, as of Hugging Face's tokenizers.
        special_tokens: texts that it may name, as ``bos_token``.

    Raises:
        BundleError: it is too long. (Its syntax is checked when it is first used, since Jinja takes memory.)
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        if len(source) > LONGEST_TEMPLATE:
            raise BundleError(
                f"the bundle's chat template has {len(source):,} characters, more than the {LONGEST_TEMPLATE:,} allowed"
            )
        self._source = source
        self._special_tokens = {str(name): str(text) for name, text in special_tokens.items()}
        self._lock = threading.Lock()
        self._meter = _Meter()
        self._compiled: Any = None

    def render(self, messages: Sequence[Message], **variables: Any) -> str:
        """The prompt of a conversation, up to where the answer begins.

        Args:
            messages: as of :func:`check_messages`.
            variables: what the template may read besides, as ``enable_thinking``.

        Raises:
            InputError: the template refuses these messages (its own words are in the message).
            BundleError: the template is wrong, or does more than it may.
            MissingExtraError: Jinja is not installed.
        """
        with self._lock:
            if self._compiled is None:
                self._compiled = self._compile()
            self._meter.reset()
            try:
                # Templates ask whether there are tools or documents, and expect the names to be there.
                given = {"tools": None, "documents": None, "add_generation_prompt": True}
                given |= self._special_tokens | variables | {"messages": check_messages(messages)}
                pieces = self._compiled.generate(**given)
                return self._joined(pieces)
            except _RefusedError as error:
                raise InputError(f"the bundle's chat template refuses these messages: {error}") from None
            except _OverworkedError as error:
                raise BundleError(f"the bundle's chat template {error}; do not chat with this bundle") from None
            except Exception as error:  # noqa: BLE001 (whatever the template runs into is the template's)
                raise BundleError(
                    f"the bundle's chat template fails with these messages: {type(error).__name__}: {str(error)[:300]}"
                ) from None

    @staticmethod
    def _joined(pieces: Iterator[str]) -> str:
        parts, length = [], 0
        for piece in pieces:
            length += len(piece)
            if length > LONGEST_PROMPT:
                raise _OverworkedError("writes more than a prompt can hold")
            parts.append(piece)
        return "".join(parts)

    def _compile(self) -> Any:
        try:
            environment = _environment(self._meter)
        except ImportError as error:
            raise MissingExtraError("jinja2", EXTRA) from error
        try:
            return environment.from_string(self._source)
        except Exception as error:  # noqa: BLE001 (Jinja's errors, and Python's for what is nested too deeply)
            raise BundleError(f"the bundle's chat template cannot be used: {type(error).__name__}: {error}") from None


class _Meter:
    """The work that one rendering has done."""

    def __init__(self) -> None:
        self._left = MOST_WORK

    def reset(self) -> None:
        """Begin a rendering."""
        self._left = MOST_WORK

    def charge(self, size: int = 0) -> None:
        """One unit, and what making ``size`` characters or items costs; before they are made."""
        self._left -= 1 + size // _CHARACTERS_A_UNIT
        if self._left < 0:
            raise _OverworkedError("does more work than a template may")

    def made(self, value: Any) -> Any:
        """Charge for a value and pass it on."""
        self.charge(_size(value))
        return value

    def steps(self, items: Any) -> Iterator[Any]:
        """The items of a loop, one unit each."""
        for item in items:
            self.charge()
            yield item


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple | dict) else 1


def _environment(meter: _Meter) -> Any:
    """Jinja's sandbox with the meter built in."""
    jinja2 = importlib.import_module("jinja2")
    sandbox = importlib.import_module("jinja2.sandbox")
    ext = importlib.import_module("jinja2.ext")
    nodes = importlib.import_module("jinja2.nodes")
    visitor = importlib.import_module("jinja2.visitor")

    class Metered(visitor.NodeTransformer):  # type: ignore[misc, name-defined]
        """Puts filters of ours around what Jinja would do without asking: loops, ``~`` and literal text."""

        def visit_For(self, node: Any) -> Any:
            self.generic_visit(node)
            if node.recursive:
                raise _unsupported(node, "recursive loops")
            node.iter = self._filtered(node.iter, "_steps")
            return node

        def visit_Concat(self, node: Any) -> Any:
            self.generic_visit(node)
            return self._filtered(nodes.List(node.nodes, lineno=node.lineno), "_concatenated")

        def visit_TemplateData(self, node: Any) -> Any:
            return self._filtered(nodes.Const(node.data, lineno=node.lineno), "_literal")

        def visit_Import(self, node: Any) -> Any:
            raise _unsupported(node, "other templates")

        visit_FromImport = visit_Include = visit_Extends = visit_Block = visit_Import

        @staticmethod
        def _filtered(node: Any, name: str) -> Any:
            return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

    def _unsupported(node: Any, what: str) -> Exception:
        error: Exception = jinja2.TemplateSyntaxError(f"{what} are not allowed", node.lineno)
        return error

    class Sandbox(sandbox.ImmutableSandboxedEnvironment):  # type: ignore[misc, name-defined]
        intercepted_binops = frozenset(("+", "*", "**", "%", "//", "/", "-"))

        def _parse(self, source: str, name: str | None, filename: str | None) -> Any:
            return Metered().visit(super()._parse(source, name, filename))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            meter.charge()
            if operator == "+" and isinstance(left, str | list | tuple):
                meter.charge(_size(left) + _size(right))
            elif not all(isinstance(side, int | float) and abs(side) < 1e15 for side in (left, right)):
                raise jinja2.sandbox.SecurityError(f"{operator!r} is for numbers")
            elif operator == "**":
                raise jinja2.sandbox.SecurityError("'**' is not allowed")
            return super().call_binop(context, operator, left, right)

        def wrap_str_format(self, value: Any) -> None:
            """Leaves ``str.format`` an ordinary method, which is not among those allowed."""

        def call(self, context: Any, called: Any, /, *arguments: Any, **named: Any) -> Any:
            owner = getattr(called, "__self__", None)
            if isinstance(owner, _PLAIN_TYPES):
                name = called.__name__
                if name not in _METHODS:
                    raise jinja2.sandbox.SecurityError(f"the method {name!r} is not allowed")
                meter.charge(_size(owner) + _outgrowth(owner, name, arguments))
            return meter.made(super().call(context, called, *arguments, **named))

    class Marked(ext.Extension):  # type: ignore[misc, name-defined]
        """``{% generation %}`` marks what an assistant wrote, for training; here its body stands as it is."""

        tags = frozenset(("generation",))

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=jinja2.pass_context(lambda context, value: meter.made(value)),
        extensions=[ext.LoopControlExtension, Marked],
    )
    known = environment.filters
    filters: dict[str, Callable[..., Any]] = {name: known[name] for name in _FILTERS if name in known}
    filters |= {
        "tojson": _to_json,
        "replace": lambda text, old, new, count=-1: _replaced(meter, str(text), str(old), str(new), count),
    }
    environment.filters = {name: _metered(meter, jinja2, each) for name, each in filters.items()}
    for name, each in {
        "_steps": meter.steps,
        "_literal": meter.made,
        "_concatenated": lambda parts: _concatenated(meter, parts),
    }.items():
        environment.filters[name] = jinja2.pass_context(lambda context, value, each=each: each(value))

    def raise_exception(message: object) -> None:
        raise _RefusedError(str(message)[:500])

    environment.globals = {
        "range": sandbox.safe_range,
        "namespace": environment.globals["namespace"],
        "dict": dict,
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.now().astimezone().strftime(str(form)[:100]),
    }
    return environment


def _metered(meter: _Meter, jinja2: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that charges for what it reads and gives, and is never worked out while a template is compiled.

    Whatever hidden first argument Jinja would give the function is given on.
    """
    hidden = importlib.import_module("jinja2.utils")._PassArg.from_obj(function)

    def charged(context: Any, value: Any, *arguments: Any, **named: Any) -> Any:
        meter.charge(_size(value))
        first = {
            "context": (context,),
            "eval_context": (context.eval_ctx,),
            "environment": (context.environment,),
        }.get(hidden.name if hidden else "", ())
        if function.__name__ in ("do_join", "sync_do_join"):
            value = [str(item) for item in meter.steps(value)] if not arguments[1:] and not named else value
            meter.charge(sum(map(_size, value)) + len(value) * _size(arguments[0] if arguments else ""))
        result = function(*first, value, *arguments, **named)
        if isinstance(result, Iterator):
            return meter.steps(result)
        return meter.made(result)

    marked: Callable[..., Any] = jinja2.pass_context(charged)
    return marked


def _concatenated(meter: _Meter, parts: list[Any]) -> str:
    texts = [str(part) for part in parts]
    meter.charge(sum(map(len, texts)))
    return "".join(texts)


def _replaced(meter: _Meter, text: str, old: str, new: str, count: int | None = -1) -> str:
    meter.charge(len(text) + _outgrowth(text, "replace", (old, new)))
    return text.replace(old, new, -1 if count is None else count)


def _outgrowth(owner: Any, name: str, arguments: tuple[Any, ...]) -> int:
    """By how many characters a method's result may be larger than what it was called on."""
    if name == "replace" and len(arguments) > 1 and isinstance(owner, str):
        return owner.count(str(arguments[0])) * len(str(arguments[1]))
    if name == "join" and arguments and isinstance(arguments[0], list | tuple):
        return len(arguments[0]) * len(owner) + sum(map(_size, arguments[0]))
    return 0


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
    """As of transformers: JSON without HTML's escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=None if indent is None else min(int(indent), 16))
