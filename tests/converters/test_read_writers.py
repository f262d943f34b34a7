"""Reading writers: weights however stored, what ends a text, sampling defaults and the chat template."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from edgescribe.converters.anatomy import DECODERS
from edgescribe.converters.read import read_student
from edgescribe.converters.student import Student
from edgescribe.errors import StudentError
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

Make = Callable[..., tuple[Path, Any]]
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is a kernel?\r\nSay."},
]


@pytest.fixture(scope="module")
def original(make_writer_checkpoint: Make) -> Path:
    return make_writer_checkpoint("llama", tie_word_embeddings=True)[0]


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A checkpoint to change."""
    return Path(shutil.copytree(original, tmp_path / "writer"))


def change(path: Path, **fields: Any) -> None:
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))


def change_weights(folder: Path, changed: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in changed(state).items()}, folder / "model.safetensors")


def test_what_a_folder_says_of_the_writer(original: Path) -> None:
    student = read_student(original, "generate")
    assert student.labels == ()
    assert student.max_tokens == 48
    assert student.pad_id == 0
    assert student.eos_ids == (2, 0)
    assert student.generation["temperature"] == 0.7
    assert student.chat_template is not None
    assert "<|im_start|>" in student.chat_template
    assert "chat_template" not in student.tokenizer_config
    assert "lm_head.weight" not in student.state
    assert "id2label" not in student.config


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("tied", [True, False])
def test_what_was_read_is_saved_as_transformers_reads_it(
    family: str,
    tied: bool,
    make_writer_checkpoint: Make,
    logits_of: Callable[..., torch.Tensor],
    sentences: list[str],
    tmp_path: Path,
) -> None:
    folder, _ = make_writer_checkpoint(family, tie_word_embeddings=tied)
    student = read_student(folder, "generate")
    student.save(tmp_path / "saved")
    model, found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.generation_config.eos_token_id == [2, 0]
    assert model.generation_config.temperature == 0.7
    before, after = (transformers.AutoTokenizer.from_pretrained(path) for path in (folder, tmp_path / "saved"))
    for options in ({}, {"add_generation_prompt": True}, {"tokenize": False}):
        assert after.apply_chat_template(CONVERSATION, **options) == before.apply_chat_template(CONVERSATION, **options)
    ids = after(sentences[1], return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == student.tokenizer.encode(sentences[1]).ids
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits[0], logits_of(student, [sentences[1]]), rtol=0, atol=1e-4)
    again = read_student(tmp_path / "saved", "generate")
    assert (again.eos_ids, again.generation, again.chat_template) == (
        student.eos_ids, student.generation, student.chat_template,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halved_weights_in_several_files(folder: Path, dtype: torch.dtype) -> None:
    expected = read_student(folder, "generate")
    state = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, some in parts.items():
        save_file({name: state[name] for name in some}, folder / file)
    index = {"weight_map": {name: file for file, some in parts.items() for name in some}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    student = read_student(folder, "generate")
    for name, tensor in student.state.items():
        torch.testing.assert_close(tensor, expected.state[name].to(dtype).float(), rtol=0, atol=0)


def test_a_tied_head_may_be_stored_once_more(folder: Path) -> None:
    expected = read_student(folder, "generate")
    change_weights(folder, lambda state: state | {"lm_head.weight": state["model.embed_tokens.weight"].clone()})
    student = read_student(folder, "generate")
    assert set(student.state) == set(expected.state)


def test_an_untied_head_must_be_there(folder: Path) -> None:
    change(folder / "config.json", tie_word_embeddings=False)
    with pytest.raises(StudentError, match=r"lack lm_head\.weight"):
        read_student(folder, "generate")


def test_weights_of_the_body_alone(folder: Path) -> None:
    expected = read_student(folder, "generate")
    change_weights(folder, lambda state: {name.removeprefix("model."): each for name, each in state.items()})
    student = read_student(folder, "generate")
    assert all(torch.equal(student.state[name], expected.state[name]) for name in expected.state)


def test_weights_that_the_program_would_not_use_are_refused(folder: Path) -> None:
    bias = {"model.layers.0.self_attn.q_proj.bias": torch.ones(36)}
    change_weights(folder, lambda state: state | bias)
    with pytest.raises(StudentError, match=r"q_proj\.bias \(1 such tensors\)"):
        read_student(folder, "generate")
    change_weights(folder, lambda state: {n: t for n, t in state.items() if n not in bias} | {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)
    })  # fmt: skip
    assert read_student(folder, "generate").state


def test_what_ends_a_text_where_the_defaults_do_not_say(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    assert read_student(folder, "generate").eos_ids == (2,)
    change(folder / "config.json", eos_token_id=[7, 8])
    assert read_student(folder, "generate").eos_ids == (7, 8)
    change(folder / "config.json", eos_token_id=...)
    assert read_student(folder, "generate").eos_ids == (2,)
    change(folder / "tokenizer_config.json", eos_token=...)
    student = read_student(folder, "generate")
    assert student.eos_ids == ()
    assert student.generation == {}


def test_padding_with_what_ends_a_text(folder: Path) -> None:
    change(folder / "tokenizer_config.json", pad_token=...)
    change(folder / "config.json", pad_token_id=...)
    assert read_student(folder, "generate").pad_id == 2


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        ("generation_config.json", "eos_token_id", 99999),
        ("generation_config.json", "eos_token_id", [2, "x"]),
        ("generation_config.json", "bos_token_id", -1),
        ("config.json", "eos_token_id", 5000),
    ],
)
def test_numbers_that_are_no_tokens(folder: Path, file: str, field: str, value: Any) -> None:
    change(folder / file, **{field: value})
    with pytest.raises(StudentError, match=field):
        read_student(folder, "generate")


def test_chat_templates_of_older_folders(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    assert read_student(folder, "generate").chat_template is None
    change(folder / "tokenizer_config.json", chat_template="{{ messages }}")
    assert read_student(folder, "generate").chat_template == "{{ messages }}"
    named = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]
    change(folder / "tokenizer_config.json", chat_template=named)
    student = read_student(folder, "generate")
    assert student.chat_template == "D"
    change(folder / "tokenizer_config.json", chat_template=3)
    with pytest.raises(StudentError, match="chat_template"):
        read_student(folder, "generate")
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(StudentError, match="not UTF-8"):
        read_student(folder, "generate")


def test_a_template_is_kept_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    (folder / "chat_template.jinja").write_bytes("{{ 'ä' }}\r\n\n".encode())
    student = read_student(folder, "generate")
    student.save(tmp_path / "saved")
    assert (tmp_path / "saved/chat_template.jinja").read_bytes() == "{{ 'ä' }}\r\n\n".encode()


def test_heads_whose_groups_do_not_come_out_even(folder: Path) -> None:
    change(folder / "config.json", num_key_value_heads=2)
    with pytest.raises(StudentError, match="9 heads and 2 key/value heads"):
        read_student(folder, "generate")


def test_tasks_of_other_kinds_of_students(folder: Path, make_student: Callable[..., Student]) -> None:
    with pytest.raises(StudentError, match="does not serve the task 'classify'"):
        read_student(folder, "classify")
    with pytest.raises(StudentError, match="does not serve the task 'generate'"):
        read_student(make_student("bert").source, "generate")


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    field=st.sampled_from(
        ["hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
         "rope_parameters", "rope_theta", "rope_scaling", "sliding_window", "layer_types", "tie_word_embeddings",
         "max_position_embeddings", "eos_token_id", "rms_norm_eps", "hidden_act", "attention_bias"]
    ),
    value=st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["rope_type", "rope_theta", "factor", "low_freq_factor"]), inner, max_size=4),
        max_leaves=5,
    ),
)  # fmt: skip
def test_wild_configurations_are_refused_or_read(
    original: Path, tmp_path_factory: pytest.TempPathFactory, field: str, value: Any
) -> None:
    folder = tmp_path_factory.getbasetemp() / "wild"
    if not folder.exists():
        shutil.copytree(original, folder)
    shutil.copy(original / "config.json", folder)
    change(folder / "config.json", **{field: value})
    with contextlib.suppress(StudentError):
        student = read_student(folder, "generate")
        assert student.shape.heads % student.shape.kv_heads == 0
        assert all(number < student.shape.vocabulary for number in student.eos_ids)
