"""Conversations become prompts as in transformers; a template that means harm is stopped at once."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from edgescribe.errors import BundleError, InputError, MissingExtraError
from edgescribe.sdk.chat_template import LONGEST_TEMPLATE, ChatTemplate
from hypothesis import given, settings
from hypothesis import strategies as st

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello <b>\n 'there' \"you\"  "},
    {"role": "assistant", "content": " Hi. 中 "},
    {"role": "user", "content": "Bye"},
]
# Written after the ways of Llama 2 and 3, Qwen, Gemma and SmolLM to say the same.
TEMPLATES = {
    "chatml": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<s>system\nNone<e>\n' }}{% endif %}{{'<s>' + message['role'] + '\n' + message['content'] + '<e>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}",
    "inst": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 %}{% set content = '<<SYS>>' ~ system ~ '<</SYS>>' ~ message['content'] %}{% else %}"
    "{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + content.strip() + ' [/INST]' }}{% elif message.role == 'assistant' %}"
    "{{ ' ' + content | trim + ' ' + eos_token }}{% endif %}{% endfor %}",
    "macros": "{%- macro shown(m, last=false) -%}\n  {{- m.role | upper }}: "
    "{{ m.content.split('\n')[-1].lstrip('\\n') }}"
    "{%- if last %} (last){% endif %}\n{% endmacro -%}\n{%- set ns = namespace(count=0, found=none) %}"
    "{%- for m in messages[::-1] if m.role != 'system' %}{% set ns.count = ns.count + 1 %}"
    "{%- if ns.found is none and m.role == 'user' %}{% set ns.found = loop.index0 %}{% endif %}{% endfor %}\n"
    "{%- for m in messages %}\n{{ shown(m, loop.last) }}\n{%- if loop.index > 3 %}{% break %}{% endif %}{% endfor %}"
    "{{ ns.count }} {{ ns.found is defined and ns.found == 0 }} {{ tools is defined }}"
    " {{ enable_thinking | default(1) }}",
    "filters": "{{ messages | map(attribute='role') | join(', ') }} "
    "{{ messages | selectattr('role', 'equalto', 'user') "
    "| list | length }} {{ messages[1] | tojson }} {{ messages[1].content | replace('there', 'here') | title }} "
    "{{ messages[0] | items | list | length }} {% for k, v in messages[0] | dictsort %}{{ k }}={{ v }};{% endfor %}"
    "{{ {'a': [1, 2.5, none, true]} | tojson(indent=2) }} {{ messages | length + 1 }} {{ 7 // 2 }} {{ -3 | abs }}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}\n{% endfor %}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_are_those_of_transformers(name: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    expected, _ = render_jinja_template(
        conversations=[TALK], chat_template=TEMPLATES[name], add_generation_prompt=True, **tokens
    )
    template = ChatTemplate(TEMPLATES[name], tokens)
    assert template.render(TALK) == expected[0]
    assert template.render(TALK) == expected[0]


def test_template_may_refuse_messages() -> None:
    template = ChatTemplate(TEMPLATES["inst"], {"bos_token": "", "eos_token": ""})
    with pytest.raises(InputError, match="Roles must alternate"):
        template.render(TALK[2:])
    assert template.render(TALK[:2])


@pytest.mark.parametrize(
    "wrong",
    [[], "Hi", None, [1], [{"role": "user"}], [{"role": "user", "content": 1}], [{"content": "x"}], {"role": "user"}],
)
def test_what_are_no_messages(wrong: Any) -> None:
    with pytest.raises(InputError):
        ChatTemplate("x", {}).render(wrong)


DOUBLED = "{{% set x = 'aaaaaaaaaaaaaaaa' %}}{}{{{{ x | length }}}}"
HARMFUL = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "huge range": "{% for a in range(10 ** 12) %}{% endfor %}",
    "filled loop": "{% set x %}{% for a in range(99999) %}" + "x" * 5000 + "{% endfor %}{% endset %}",
    "recursion": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "tree": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "recursive loop": "{% for x in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "plus": DOUBLED.format("{% set x = x + x %}" * 60),
    "tilde": DOUBLED.format("{% set x = x ~ x %}" * 60),
    "lists": "{% set x = [1, 2, 3] %}" + "{% set x = x + x %}" * 60,
    "blocks": DOUBLED.format("{% set x %}{{ x }}{{ x }}{% endset %}" * 60),
    "replace": DOUBLED.format("{% set x = x.replace('a', x) %}" * 20),
    "replace filter": DOUBLED.format("{% set x = x | replace('a', x) %}" * 20),
    "replace nothing": DOUBLED.format("{% set x = x.replace('', x) %}" * 20),
    "join": DOUBLED.format("{% set x = x.join(x | list) %}" * 20),
    "join filter": DOUBLED.format("{% set x = x | list | join(x) %}" * 20),
    "json": DOUBLED.format("{% set x = [x, x] | tojson %}" * 60),
    "upper": DOUBLED.format("{% set x = [x, x] | string | upper %}" * 60),
    "times": "{{ 'a' * 10000000000 }}",
    "power": "{{ 9 ** 9 ** 9 }}",
    "percent": "{{ '%10000000000d' % 1 }}",
    "format": "{{ '{:10000000000}'.format(1) }}",
    "format map": "{{ '{a:10000000000}'.format_map({'a': 1}) }}",
    "center": "{{ 'x'.center(10000000000) }}",
    "center filter": "{{ 'x' | center(10000000000) }}",
    "wide json": "{{ messages | tojson(indent=10000000000) }}" * 1500,
    "nested": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "class": "{{ messages.__class__.__base__.__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__ }}",
    "attribute filter": "{{ messages | attr('__class__') }}",
    "mapped attributes": "{{ messages | map(attribute='__class__') | list }}",
    "change": "{{ messages.append(1) }}",
    "include": "{% include 'other' %}",
    "import": "{% import 'other' as other %}",
    "extends": "{% extends 'other' %}",
    "environment": "{{ self._TemplateReference__context.environment }}",
    "cycler": "{{ cycler.__init__.__globals__ }}",
    "lipsum": "{{ lipsum(n=100000) }}",
    "syntax": "{% for %}",
    "undefined": "{{ nothing.more }}",
    "division": "{{ 1 / 0 }}",
    "endless text": "{% for a in range(99999) %}" + "x" * 50000 + "{% endfor %}",
}

GIVE_A_TEXT = ("globals", "mapped attributes", "wide json")
"""What Jinja hides it renders as nothing; JSON is never indented by more than 16 blanks."""


@pytest.mark.parametrize("name", HARMFUL)
@pytest.mark.timeout(60)
def test_harmful_templates_are_stopped(name: str) -> None:
    template = ChatTemplate(HARMFUL[name], {})
    if name in GIVE_A_TEXT:
        assert "class" not in template.render(TALK)
        return
    with pytest.raises(BundleError, match="chat template"):
        template.render(TALK)


@settings(max_examples=60)
@given(
    pieces=st.lists(
        st.sampled_from(["{{", "}}", "{%", "%}", " messages ", " for x in ", " if ", "endfor", "endif", "|join", "[0]",
                         ".content", "'a'", "range(9)", "(", ")", " set x = ", " + ", "x", " macro f() ", "endmacro"]),
        max_size=20,
    )
)  # fmt: skip
def test_any_template_gives_a_text_or_an_error_of_ours(pieces: list[str]) -> None:
    try:
        given_text = ChatTemplate("".join(pieces), {}).render(TALK)
    except (BundleError, InputError):
        return
    assert isinstance(given_text, str)


def test_too_long_templates_and_a_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match="characters"):
        ChatTemplate("x" * (LONGEST_TEMPLATE + 1), {})
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"edgescribe\[chat\]"):
        ChatTemplate("x", {}).render(TALK)
