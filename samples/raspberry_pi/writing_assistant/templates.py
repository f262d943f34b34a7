"""What the page offers: fields, actions and the prompts behind them, read from ``templates.toml``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec

Length = Literal["short", "medium", "long"]
PLACE = "{text}"

Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]{1,40}$")]
Title = Annotated[str, msgspec.Meta(min_length=1, max_length=80)]
Temperature = Annotated[float, msgspec.Meta(ge=0, le=2)]
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
StopString = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
Penalty = Annotated[float, msgspec.Meta(ge=1, le=2)]


class TemplateError(Exception):
    """The file of templates cannot be used; the message says where it is wrong."""


class Choosing(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How tokens are chosen; see :class:`edgescribe.sdk.sampling.Sampling`."""

    temperature: Temperature = 0.0
    top_p: Share = 1.0
    repetition_penalty: Penalty = 1.0


class Action(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Something to do with a text: its names on the page, and the prompts."""

    name: Name
    title: Title
    label: Title
    user: Annotated[str, msgspec.Meta(min_length=1, max_length=4000)]
    system: Annotated[str, msgspec.Meta(max_length=4000)] = ""
    stop: Annotated[tuple[StopString, ...], msgspec.Meta(max_length=8)] = ()
    example: Annotated[str, msgspec.Meta(max_length=2000)] = ""
    temperature: Temperature | None = None
    top_p: Share | None = None
    repetition_penalty: Penalty | None = None

    def prompt(self, text: str) -> str | list[dict[str, str]]:
        """What asks for it: a conversation, or without a system prompt a plain text to go on from."""
        user = self.user.replace(PLACE, text.strip())
        if not self.system.strip():
            return user
        return [{"role": "system", "content": self.system.strip()}, {"role": "user", "content": user}]


class Field(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A kind of text with its actions."""

    name: Name
    title: Title
    actions: Annotated[tuple[Action, ...], msgspec.Meta(min_length=1, max_length=20)]
    notice: Annotated[str, msgspec.Meta(max_length=500)] = ""


class Templates(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The whole file."""

    lengths: dict[Length, Annotated[int, msgspec.Meta(ge=1, le=4096)]]
    fields: Annotated[tuple[Field, ...], msgspec.Meta(min_length=1, max_length=20)]
    writing: Choosing = Choosing()

    def find(self, field: str, action: str) -> tuple[Field, Action] | None:
        """A field and its action by their names, or None."""
        for found in self.fields:
            for each in found.actions:
                if (found.name, each.name) == (field, action):
                    return found, each
        return None

    def choosing(self, action: Action) -> Choosing:
        """How an action's tokens are chosen."""
        named = {name: getattr(action, name) for name in Choosing.__struct_fields__}
        own = {name: value for name, value in named.items() if value is not None}
        return msgspec.structs.replace(self.writing, **own)


def read_templates(path: Path) -> Templates:
    """Read and check a file of templates.

    Raises:
        TemplateError: it is missing, no TOML, or not as the comment at its top says.
    """
    try:
        found = msgspec.toml.decode(path.read_bytes(), type=Templates)
    except OSError as error:
        raise TemplateError(f"--templates {path}: {error.strerror}; give a file like templates.toml") from None
    except (msgspec.MsgspecError, ValueError) as error:  # ValueError: not UTF-8, or no TOML
        raise TemplateError(f"{path}: {error}; the top of templates.toml says what may stand there") from None
    missing = sorted(set(get_args(Length)) - found.lengths.keys())
    if missing:
        raise TemplateError(f"{path}: [lengths] has no {missing[0]!r}")
    _check_names(path, "fields", [field.name for field in found.fields])
    for field in found.fields:
        _check_names(path, f"actions of {field.name!r}", [action.name for action in field.actions])
        for action in field.actions:
            count = len(re.findall(re.escape(PLACE), action.user))
            if count != 1:
                raise TemplateError(
                    f"{path}: `user` of {field.name}/{action.name} has {PLACE} {count} times; it has to "
                    "stand there once, where the typed text goes"
                )
    return found


def _check_names(path: Path, what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise TemplateError(f"{path}: two {what} are called {name!r}; give each a name of its own")
