"""What a writer's chat template puts around messages, so that none of it leaves the vocabulary."""

from __future__ import annotations

from ..errors import BundleError, InputError
from ..sdk.chat_template import ChatTemplate
from .student import Student
from .tokenizer_files import NAMED, special_token

CONVERSATIONS = (
    ("user",),
    ("system", "user"),
    ("user", "assistant"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user"),
)
"""Roles of messages; many templates refuse a system message, or two of one role in turn."""

CONTENTS = ("", "a", "a\n")


def chat_prompts(student: Student) -> list[str]:
    """Prompts of short conversations, as many as its template takes; none where it has no template."""
    if student.chat_template is None:
        return []
    found = {name: special_token(student.tokenizer_config, name) for name in NAMED}
    named = {name: token for name, token in found.items() if token is not None}
    prompts = []
    try:
        template = ChatTemplate(student.chat_template, named)
    except BundleError:
        return []
    for roles in CONVERSATIONS:
        for content in CONTENTS:
            try:
                prompts.append(template.render([{"role": role, "content": content} for role in roles]))
            except (InputError, BundleError):
                continue
    return prompts
