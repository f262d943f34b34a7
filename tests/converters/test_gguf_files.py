"""GGUF files, written here as llama.cpp's converter writes them, give the student that they were made from."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from edgescribe.converters.anatomy import DECODERS
from edgescribe.converters.families.decoder_layers import llama3_scaling, rotary_of
from edgescribe.converters.gguf_files import FIELDS, GPT2_FIELDS, GPT2_LAYER_NAMES, GPT2_NAMES, LAYER_NAMES, NAMES
from edgescribe.converters.read import read_student
from edgescribe.converters.student import Student
from edgescribe.converters.vocabulary import trim_vocabulary
from edgescribe.errors import StudentError
from hypothesis import given, settings
from hypothesis import strategies as st

Write = Callable[..., Path]
SIZES = {"hidden_size": 32, "intermediate_size": 64, "head_dim": 8, "num_attention_heads": 4, "num_key_value_heads": 2}
GPT2_SIZES = {"n_embd": 32, "n_head": 4, "n_inner": 64}


def as_stored(family: str, name: str, array: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """What llama.cpp's convert_hf_to_gguf makes of a tensor."""
    if family == "llama" and ("q_proj" in name or "k_proj" in name):
        heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
        halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
        return halves.swapaxes(1, 2).reshape(array.shape)
    if family == "gemma" and name.endswith("norm.weight"):
        return array + 1
    if family == "gpt2" and ".c_" in name and name.endswith("weight"):
        return array.T
    return array


def stored_name(family: str, name: str) -> str:
    names, layer_names = (GPT2_NAMES, GPT2_LAYER_NAMES) if family == "gpt2" else (NAMES, LAYER_NAMES)
    body, ending = name.rsplit(".", 1)
    back = {known: stored for stored, known in names.items()}
    if body in back:
        return f"{back[body]}.{ending}"
    _, _, layer, part = body.split(".", 3)
    back = {known: stored for stored, known in layer_names.items()}
    return f"blk.{layer}.{back[part]}.{ending}"


def put_tokenizer(writer: gguf.GGUFWriter, student: Student, pre: str) -> None:
    description = json.loads(student.tokenizer.to_str())
    special = {entry["id"] for entry in description["added_tokens"]}
    vocabulary = student.tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if number in special else 1 for number in range(len(tokens))])
    writer.add_token_merges([" ".join(merge) for merge in description["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    if student.chat_template is not None:
        writer.add_chat_template(student.chat_template)


@pytest.fixture(scope="session")
def write_gguf(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """``write_gguf(student, kind=F32, change=…, pre="gpt-2")``: the path; ``change(writer)`` adds to it last."""

    def write(
        student: Student,
        kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
        change: Callable[[gguf.GGUFWriter], None] | None = None,
        pre: str = "gpt-2",
        leave_out: tuple[str, ...] = (),
    ) -> Path:
        family, config = student.config["model_type"], student.config
        path = tmp_path_factory.mktemp("gguf") / "model.gguf"
        writer = gguf.GGUFWriter(path, family)
        for field, name in (GPT2_FIELDS if family == "gpt2" else FIELDS).items():
            value = config.get(name)
            if isinstance(value, float):
                writer.add_float32(f"{family}.{field}", value)
            elif value is not None and field not in leave_out:
                writer.add_uint32(f"{family}.{field}", value)
        if family != "gpt2":
            writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
            writer.add_rope_dimension_count(config["head_dim"])
        if "tokenizer" not in leave_out:
            put_tokenizer(writer, student, pre)
        for name, tensor in student.state.items():
            array = np.ascontiguousarray(as_stored(family, name, tensor.numpy(), config))
            stored = gguf.GGMLQuantizationType.F32 if array.ndim == 1 else kind
            packed = gguf.quantize(array, stored)
            writer.add_tensor(stored_name(family, name), packed, raw_dtype=stored)
        if change is not None:
            change(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("tied", [True, False])
def test_a_file_gives_the_student_it_was_made_from(
    family: str,
    tied: bool,
    make_writer: Callable[..., Student],
    write_gguf: Write,
    logits_of: Callable[..., torch.Tensor],
    sentences: list[str],
) -> None:
    sizes = GPT2_SIZES if family == "gpt2" else SIZES
    student = make_writer(family, tie_word_embeddings=tied, **sizes)
    read = read_student(write_gguf(student), "generate")
    assert set(read.state) == set(student.state)
    for name, tensor in student.state.items():
        torch.testing.assert_close(read.state[name], tensor, rtol=0, atol=1e-6)
    assert read.shape.tied is tied
    assert read.shape.activation == student.shape.activation
    assert (read.max_tokens, read.pad_id, read.eos_ids) == (student.max_tokens, 0, (2,))
    assert read.chat_template == student.chat_template
    text = sentences[3] + " <|im_start|>user\nünï 1234 \u0301x<|im_end|>"
    assert read.tokenizer.encode(text).ids == student.tokenizer.encode(text).ids
    torch.testing.assert_close(logits_of(read, sentences), logits_of(student, sentences), rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_transformers_reads_the_same_from_the_file(
    family: str, make_writer: Callable[..., Student], write_gguf: Write, logits_of: Callable[..., torch.Tensor]
) -> None:
    student = make_writer(family, tie_word_embeddings=False, **SIZES)
    path = write_gguf(student)
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    read = read_student(path.parent, "generate")
    ids = torch.tensor([read.tokenizer.encode("tools for editing text").ids])
    with torch.no_grad():
        torch.testing.assert_close(
            logits_of(read, ["tools for editing text"]), model(ids).logits[0].float(), rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0"])
def test_quantised_weights_become_floats(kind: str, make_writer: Callable[..., Student], write_gguf: Write) -> None:
    student = make_writer("llama", **SIZES)
    stored = gguf.GGMLQuantizationType[kind]
    read = read_student(write_gguf(student, stored), "generate")
    for name, tensor in student.state.items():
        expected = as_stored("llama", name, tensor.numpy(), student.config)
        if tensor.dim() == 2:
            expected = gguf.dequantize(gguf.quantize(np.ascontiguousarray(expected), stored), stored)
        found = as_stored("llama", name, read.state[name].numpy(), student.config)
        np.testing.assert_array_equal(found, expected)


def test_a_file_saved_as_a_checkpoint(
    make_writer: Callable[..., Student], write_gguf: Write, logits_of: Callable[..., torch.Tensor], tmp_path: Path
) -> None:
    read = read_student(write_gguf(make_writer("qwen3", attention_bias=True, **SIZES)), "generate")
    read.save(tmp_path / "saved")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "mail?"}], tokenize=False)
    assert prompt == "<|im_start|>user\nmail?<|im_end|>\n"
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits[0], logits_of(read, [prompt]), rtol=0, atol=1e-4)
    assert model.generation_config.eos_token_id == 2


def test_scaled_rotary_positions(make_writer: Callable[..., Student], write_gguf: Write) -> None:
    student = make_writer("llama", **{**SIZES, "head_dim": 64})
    base = student.config["rope_parameters"]["rope_theta"]
    scaling = {"rope_type": "llama3", "rope_theta": base, "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
    wanted = rotary_of({"rope_parameters": scaling}, 64).frequencies
    plain = rotary_of({"rope_theta": base}, 64).frequencies
    divisors = np.array([each / other for each, other in zip(plain, wanted, strict=True)], np.float32)
    path = write_gguf(student, change=lambda writer: writer.add_tensor("rope_freqs.weight", divisors))
    rotary = read_student(path, "generate").shape.rotary
    assert rotary is not None
    np.testing.assert_allclose(rotary.frequencies, wanted, rtol=1e-6)
    assert llama3_scaling(divisors * np.linspace(1, 2, 32), base, 64) is None

    def linear(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(2.0)

    rotary = read_student(write_gguf(student, change=linear), "generate").shape.rotary
    assert rotary is not None
    np.testing.assert_allclose(rotary.frequencies, np.array(plain) / 2, rtol=1e-6)
    yarn = write_gguf(student, change=lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.YARN))
    with pytest.raises(StudentError, match="'yarn'"):
        read_student(yarn, "generate")


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("smollm", "a 123 it's", ["a", " ", "1", "2", "3", " it", "'s"]),
        ("gpt-2", "a 123 it's", ["a", " 123", " it", "'s"]),
        ("qwen2", "a 123 it's", ["a", " ", "1", "2", "3", " it", "'s"]),
        ("llama-bpe", "a 1234 IT'S\n\n x", ["a", " ", "123", "4", " IT", "'S", "\n\n", " x"]),
    ],
)
def test_how_text_is_split_before_it_is_cut(
    pre: str, text: str, pieces: list[str], make_writer: Callable[..., Student], write_gguf: Write
) -> None:
    tokenizer = read_student(write_gguf(make_writer("llama", **SIZES), pre=pre), "generate").tokenizer
    found = [text[begin:end] for _, (begin, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    assert found == pieces
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_tokenizers(
    prefix: bool, make_writer: Callable[..., Student], write_gguf: Write, sentences: list[str]
) -> None:
    """Text is cut as sentencepiece cuts it."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 4), model_writer=trained, vocab_size=390, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", add_dummy_prefix=prefix,
        remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    reference = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    size = reference.get_piece_size()

    def put(writer: gguf.GGUFWriter) -> None:
        kinds = [2 if reference.is_unknown(n) else 3 if reference.is_control(n) else 6 if reference.is_byte(n) else 1
                 for n in range(size)]  # fmt: skip
        writer.add_tokenizer_model("llama")
        writer.add_token_list([reference.id_to_piece(number) for number in range(size)])
        writer.add_token_scores([reference.get_score(number) for number in range(size)])
        writer.add_token_types(kinds)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
        writer.add_add_space_prefix(prefix)

    student = read_student(write_gguf(make_writer("llama", **SIZES), change=put, leave_out=("tokenizer",)), "generate")
    for text in (*sentences, "  two  spaces ", "漢字 😀\n\ttab", "networks1234", "für"):
        ids = student.tokenizer.encode(text).ids
        assert ids == [1, *reference.encode(text)]
        assert student.tokenizer.decode(ids) == text
    assert student.tokenizer_config["unk_token"] == "<unk>"
    trimmed = trim_vocabulary(student, sentences[:3])
    assert trimmed.shape.vocabulary < student.shape.vocabulary
    for text in (*sentences, "  two  spaces ", "漢字 😀\n\ttab"):
        assert trimmed.tokenizer.decode(trimmed.tokenizer.encode(text).ids) == text
    for text in sentences[:3]:
        assert trimmed.tokenizer.encode(text).tokens == student.tokenizer.encode(text).tokens


def test_ends_of_a_turn_end_a_text_too(make_writer: Callable[..., Student], write_gguf: Write) -> None:
    path = write_gguf(make_writer("llama", **SIZES), change=lambda writer: writer.add_eot_token_id(0))
    assert read_student(path, "generate").eos_ids == (2, 0)


def refused(path: Path, words: str) -> None:
    with pytest.raises(StudentError, match=words):
        read_student(path, "generate")


def test_what_is_not_read_is_refused(make_writer: Callable[..., Student], write_gguf: Write, tmp_path: Path) -> None:
    student = make_writer("llama", **SIZES)
    refused(write_gguf(student, pre="tekken"), "'tekken'")
    refused(write_gguf(student, leave_out=("tokenizer",)), "no tokenizer")
    refused(write_gguf(student, change=lambda writer: writer.add_expert_count(8)), "expert_count 8")
    refused(write_gguf(student, change=lambda writer: writer.add_sliding_window(8)), "sliding-window")
    odd = np.ones(4, np.float32)
    refused(write_gguf(student, change=lambda writer: writer.add_tensor("blk.0.ffn_gate_inp.weight", odd)), "no use")
    whole_numbers = np.ones(4, np.int8)
    refused(write_gguf(student, change=lambda writer: writer.add_tensor("output.bias", whole_numbers)), "stored as I8")
    refused(write_gguf(student, leave_out=("block_count",)), "block_count")
    path = tmp_path / "phi.gguf"
    writer = gguf.GGUFWriter(path, "phi3")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    refused(path, "'phi3'; GGUF files of these are read")


@pytest.fixture(scope="session")
def whole(make_writer: Callable[..., Student], write_gguf: Write) -> bytes:
    return write_gguf(make_writer("llama", **SIZES)).read_bytes()


def test_files_that_end_too_soon_are_refused(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "damaged.gguf"
    for part in (b"", whole[:3], whole[:20], whole[:900], whole[: len(whole) // 2], whole[:-1], b"GGML" + whole[4:]):
        path.write_bytes(part)
        refused(path, "not a GGUF file|ends before")
    path.write_bytes(whole[:4] + (1).to_bytes(4, "little") + whole[8:])
    refused(path, "of version 1")


@settings(max_examples=150, deadline=None, derandomize=True)
@given(places=st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0, 1, 9, 127, 255])), min_size=1, max_size=4))
def test_damaged_files_are_refused_or_read(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, places: list[tuple[float, int]]
) -> None:
    """Whatever stands in the metadata and the tensors' descriptions."""
    head = whole.index(b"token_embd.weight") + 2000
    changed = bytearray(whole)
    for place, value in places:
        changed[int(place * head)] = value
    path = tmp_path_factory.getbasetemp() / "changed.gguf"
    path.write_bytes(bytes(changed))
    with contextlib.suppress(StudentError):
        read_student(path, "generate")


def test_which_file_of_a_folder(make_writer: Callable[..., Student], write_gguf: Write) -> None:
    path = write_gguf(make_writer("llama", **SIZES))
    assert read_student(path.parent, "generate").source == str(path.parent)
    shutil.copy(path, path.parent / "other.gguf")
    refused(path.parent, "2 GGUF files")
    with pytest.raises(StudentError, match="does not serve"):
        read_student(path, "classify")
