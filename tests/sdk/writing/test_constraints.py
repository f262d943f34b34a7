"""Constrained texts: a random model must write what the schema, expression or choices allow, and nothing else."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest
from edgescribe.errors import BundleError, InputError, MissingExtraError, UsageError
from edgescribe.sdk.text_codec import TextCodec
from edgescribe.sdk.writer import Writer

SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Ada", "Zoë"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(autouse=True)
def _library() -> None:
    pytest.importorskip("llguidance", reason="the extra 'constraints' is not installed")


@pytest.mark.parametrize("temperature", [0.0, 3.0])
@pytest.mark.parametrize("schema", [SCHEMA, json.dumps(SCHEMA)], ids=["mapping", "text"])
def test_json_schema(writer: Writer, temperature: float, schema: Any) -> None:
    for seed in range(3):
        result = writer.generate("x", schema=schema, temperature=temperature, seed=seed, max_new_tokens=200)
        assert result.finish_reason == "stop"
        read = json.loads(result.text)
        assert read["name"] in ("Ada", "Zoë")
        assert 0 <= read["age"] <= 99
        assert set(read) == {"name", "age"}


@pytest.mark.parametrize("regex", [r"[0-9]{3}-[a-f]+x", "(ja|nein), 中{2,3}!", r"\d{4}-\d{2}-\d{2}"])
def test_regular_expression(writer: Writer, regex: str) -> None:
    for seed in range(4):
        result = writer.generate("x", regex=regex, temperature=2.0, seed=seed, max_new_tokens=150)
        assert result.finish_reason == "length" or re.fullmatch(regex, result.text)
        assert result.text


def test_choices(writer: Writer) -> None:
    choices = ["yes", 'no "never"', "vielleicht später\n", "北京", "yes indeed"]
    given = {writer.generate("x", choices=choices, temperature=5.0, seed=seed).text for seed in range(25)}
    assert given <= set(choices)
    assert len(given) > 1
    assert writer.generate("x", choices=["only this"]).text == "only this"


def test_constrained_text_with_lookup_and_stop_strings(writer: Writer) -> None:
    prompt = '{"name": "Ada", "age": 36} {"name": "Ada", "age": 36} {"name":'
    plain = writer.generate(prompt, schema=SCHEMA, lookup=False)
    looked = writer.generate(prompt, schema=SCHEMA, lookup=True)
    assert plain.tokens == looked.tokens
    stopped = writer.generate("x", choices=["left, right"], stop=[","])
    assert (stopped.text, stopped.stop) == ("left", ",")


def test_what_cannot_be_followed_is_told(writer: Writer) -> None:
    for wrong in (
        {"regex": "("}, {"regex": ""}, {"regex": "(?=a)b"}, {"schema": "nonsense"}, {"schema": [1]},
        {"schema": {"type": "nonsense"}}, {"schema": {"$ref": "http://example.org/x"}}, {"choices": []},
        {"choices": "yes"}, {"choices": [""]}, {"choices": [1]},
    ):  # fmt: skip
        with pytest.raises(InputError):
            writer.generate("x", **wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="just one"):
        writer.generate("x", regex="a", choices=["b"])


def test_a_bundle_without_end_tokens_cannot_constrain(torch_session: Any, codec: TextCodec) -> None:
    with pytest.raises(BundleError, match="ends a text"):
        Writer(torch_session(), codec).generate("x", regex="a")


def test_missing_library_names_its_extra(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match=r"edgescribe\[constraints\]"):
        writer.generate("x", choices=["a"])
