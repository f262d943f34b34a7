"""Checkpoints of summarisers as they are found: ties under all their names, older files, damaged ones."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers
from edgescribe.converters.anatomy import ENCODER_DECODERS
from edgescribe.converters.read import read_student
from edgescribe.converters.student import Student
from edgescribe.converters.summary_data import end_id, start_ids
from edgescribe.errors import StudentError
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

Make = Callable[..., tuple[Path, Any]]
Weights = dict[str, torch.Tensor]


@pytest.fixture
def folder_of(make_summarizer_checkpoint: Make, tmp_path: Path) -> Callable[..., Path]:
    """``folder_of(family, **options)``: a checkpoint to change."""

    def make(family: str, **options: Any) -> Path:
        return Path(shutil.copytree(make_summarizer_checkpoint(family, **options)[0], tmp_path / "student"))

    return make


def change(path: Path, **fields: Any) -> None:
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))


def change_weights(folder: Path, changed: Callable[[Weights], Weights]) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({name: tensor.clone().contiguous() for name, tensor in changed(state).items()},
              folder / "model.safetensors")  # fmt: skip


def test_what_a_folder_says_of_the_summariser(folder_of: Callable[..., Path]) -> None:
    student = read_student(folder_of("bart"), "summarize")
    assert (student.labels, student.chat_template) == ((), None)
    assert student.max_tokens == 64
    number = student.tokenizer.token_to_id
    assert start_ids(student) == (number("</s>"), number("<s>"))
    assert (end_id(student), student.eos_ids, student.pad_id) == (number("</s>"), (number("</s>"),), number("<pad>"))
    kept = {name: student.generation[name] for name in ("num_beams", "length_penalty", "no_repeat_ngram_size")}
    assert kept == {"num_beams": 4, "length_penalty": 0.8, "no_repeat_ngram_size": 3}
    assert student.generation["forced_eos_token_id"] == number("</s>")
    assert "id2label" not in student.config


@pytest.mark.parametrize("family", ENCODER_DECODERS)
@pytest.mark.parametrize("untied", [False, True])
def test_what_was_read_is_saved_as_transformers_reads_it(
    family: str,
    untied: bool,
    make_summarizer_checkpoint: Make,
    pair_logits: Callable[..., torch.Tensor],
    model_logits: Callable[..., torch.Tensor],
    in_double: Callable[[Student], Student],
    sentences: list[str],
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {"untied": untied} if family in ("t5", "mt5") else {"tie_word_embeddings": not untied}
    if family == "marian":
        options["share_encoder_decoder_embeddings"] = not untied
    folder, _ = make_summarizer_checkpoint(family, **options)
    student = read_student(folder, "summarize")
    student.save(tmp_path)
    model, found = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.generation_config.num_beams == 4
    assert model.generation_config.decoder_start_token_id == student.config["decoder_start_token_id"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer(sentences[7])["input_ids"] == student.tokenizer.encode(sentences[7]).ids
    texts = sentences[:2], sentences[2:4]
    expected = pair_logits(in_double(student), *texts)
    torch.testing.assert_close(model_logits(model.eval(), student, *texts), expected, rtol=1e-5, atol=1e-6)
    again = read_student(tmp_path, "summarize")
    assert set(again.state) == set(student.state)
    assert all(torch.equal(again.state[name], tensor) for name, tensor in student.state.items())
    assert (again.config, again.generation, again.max_tokens) == (
        {**student.config, "architectures": again.config["architectures"]} | {"dtype": "float32"},
        student.generation, student.max_tokens,
    )  # fmt: skip


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_one_table_under_all_its_names(family: str, folder_of: Callable[..., Path]) -> None:
    """As pickled checkpoints have it: the shared table, both halves' and the head."""
    folder = folder_of(family)
    expected = read_student(folder, "summarize").state
    prefix = "" if family in ("t5", "mt5") else "model."
    table = expected[f"{prefix}shared.weight"]
    names = [f"{prefix}{part}.weight" for part in ("shared", "encoder.embed_tokens", "decoder.embed_tokens")]
    for count in range(1, 4):
        here = dict.fromkeys([*names[3 - count :], "lm_head.weight"], table)
        change_weights(folder, lambda state, here=here: {n: t for n, t in state.items() if n not in names} | here)
        state = read_student(folder, "summarize").state
        assert set(state) == set(expected)
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("prefixed", [False, True])
def test_weights_of_the_body_alone(prefixed: bool, folder_of: Callable[..., Path]) -> None:
    folder = folder_of("bart")
    expected = read_student(folder, "summarize").state
    prefix = "" if prefixed else "model."
    body = [name for name in expected if name.startswith("model.")]
    change_weights(folder, lambda state: {name.removeprefix(prefix): state[name] for name in body})
    state = read_student(folder, "summarize").state
    assert set(state) == set(expected)
    assert not state.pop("final_logits_bias").any()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


def test_a_flan_t5_of_older_transformers(
    make_summarizer_checkpoint: Make,
    folder_of: Callable[..., Path],
    pair_logits: Callable[..., torch.Tensor],
    model_logits: Callable[..., torch.Tensor],
    in_double: Callable[[Student], Student],
    sentences: list[str],
) -> None:
    """``tie_word_embeddings`` off tells there of a head that is not scaled; the table stands there three times."""
    options = {"tie_word_embeddings": False, "untied": True, "feed_forward_proj": "gated-gelu"}
    _, model = make_summarizer_checkpoint("t5", **options)
    folder = folder_of("t5", **options)
    newer = dict.fromkeys(("scale_decoder_outputs", "dense_act_fn", "is_gated_act"), ...)
    change(folder / "config.json", tie_word_embeddings=False, **newer)
    strange = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    change_weights(
        folder,
        lambda state: state
        | {f"{half}.embed_tokens.weight": state["shared.weight"] for half in ("encoder", "decoder")}
        | {strange: torch.ones(8, 3)},
    )
    student = read_student(folder, "summarize")
    assert "lm_head.weight" in student.state
    assert strange not in student.state
    texts = sentences[:2], sentences[2:4]
    expected = model_logits(model, student, *texts)
    torch.testing.assert_close(pair_logits(in_double(student), *texts), expected, rtol=1e-5, atol=1e-6)
    # The original T5 has neither field, and scales.
    change(folder / "config.json", tie_word_embeddings=...)
    scaled = pair_logits(in_double(read_student(folder, "summarize")), *texts)
    torch.testing.assert_close(scaled * 12**0.5, pair_logits(in_double(student), *texts), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("limit", "expected"), [(100, 100), (2048, 2048), (1e30, 512), (..., 512), (0, 512)])
def test_the_longest_input_of_a_t5(limit: Any, expected: int, folder_of: Callable[..., Path]) -> None:
    folder = folder_of("t5")
    change(folder / "tokenizer_config.json", model_max_length=limit)
    assert read_student(folder, "summarize").max_tokens == expected


@pytest.mark.parametrize(("limit", "expected"), [(50, 50), (1e30, 64), (..., 64), (512, 64)])
@pytest.mark.parametrize("family", ["bart", "marian"])
def test_the_longest_input_is_what_has_positions(
    family: str, limit: Any, expected: int, folder_of: Callable[..., Path]
) -> None:
    folder = folder_of(family)
    change(folder / "tokenizer_config.json", model_max_length=limit)
    assert read_student(folder, "summarize").max_tokens == expected


def test_defaults_that_older_checkpoints_have_in_their_configuration(folder_of: Callable[..., Path]) -> None:
    folder = folder_of("bart")
    (folder / "generation_config.json").unlink()
    change(folder / "config.json", num_beams=6, length_penalty=2.0, min_length=7, forced_bos_token_id=0)
    generation = read_student(folder, "summarize").generation
    assert (generation["num_beams"], generation["length_penalty"], generation["min_length"]) == (6, 2.0, 7)
    assert generation["forced_bos_token_id"] == 0
    assert "d_model" not in generation


def test_marian_without_and_with_positions(folder_of: Callable[..., Path]) -> None:
    folder = folder_of("marian")
    expected = read_student(folder, "summarize").state["model.encoder.embed_positions.weight"]
    assert expected.shape == (64, 12)
    names = [f"model.{half}.embed_positions.weight" for half in ("encoder", "decoder")]
    change_weights(folder, lambda state: state | dict.fromkeys(names, expected + 1))
    state = read_student(folder, "summarize").state
    assert torch.equal(state[names[0]], expected + 1)
    assert names[1] not in state
    change_weights(folder, lambda state: state | {names[1]: expected})
    with pytest.raises(StudentError, match="other positions for the target"):
        read_student(folder, "summarize")


def sentencepiece_model(path: Path, sentences: list[str], size: int, **options: Any) -> Any:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 5), model_prefix=str(path.with_suffix("")), vocab_size=size,
        hard_vocab_limit=False, minloglevel=2, **options,
    )  # fmt: skip
    path.with_suffix(".vocab").unlink()
    path.with_suffix(".model").rename(path)
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


@pytest.mark.parametrize("family", ["t5", "mt5"])
@pytest.mark.parametrize("configured", [True, False])
def test_a_t5_with_a_sentencepiece_model_alone(
    family: str, configured: bool, folder_of: Callable[..., Path], sentences: list[str], tmp_path: Path
) -> None:
    folder = folder_of(family, vocab_size=260)
    (folder / "tokenizer.json").unlink()
    model = sentencepiece_model(folder / "spiece.model", sentences, 120, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    (folder / "tokenizer_config.json").unlink()
    if configured:
        sentinels = [f"<extra_id_{number}>" for number in range(100)]
        fields = {"extra_ids": 100, "additional_special_tokens": sentinels, "model_max_length": 512}
        named = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(fields | named))
    student = read_student(folder, "summarize")
    for text in sentences:
        assert student.tokenizer.encode(text).ids == [*model.encode(text), 1]
        assert student.tokenizer.decode(model.encode(text)) == text
    assert student.tokenizer.token_to_id("<extra_id_0>") == model.vocab_size() + 99
    assert (student.pad_id, student.eos_ids, start_ids(student)) == (0, (1,), (0,))
    student.save(tmp_path / "saved")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert len(tokenizer) == model.vocab_size() + 100
    assert tokenizer(sentences[0])["input_ids"] == [*model.encode(sentences[0]), 1]


@pytest.fixture
def opus(folder_of: Callable[..., Path], sentences: list[str]) -> Path:
    """A Marian whose tokenizer is two sentencepiece models and one list of pieces."""
    folder = folder_of("marian", vocab_size=220, pad_token_id=219, decoder_start_token_id=219, eos_token_id=0)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).unlink()
    source = sentencepiece_model(folder / "source.spm", sentences, 100)
    target = sentencepiece_model(folder / "target.spm", [text[::-1] for text in sentences], 100)
    pieces = {model.id_to_piece(number) for model in (source, target) for number in range(3, model.vocab_size())}
    ordered = ["</s>", "<unk>", ">>fra<<", *sorted(pieces), "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(ordered)}))
    numbers = {"vocab_size": len(ordered), "decoder_vocab_size": len(ordered), "pad_token_id": len(ordered) - 1}
    change(folder / "config.json", **numbers, decoder_start_token_id=len(ordered) - 1)
    rows = len(ordered)
    change_weights(
        folder,
        lambda state: state
        | {"model.shared.weight": state["model.shared.weight"][:rows], "final_logits_bias": torch.zeros(1, rows)},
    )
    return folder


def test_a_marian_with_its_own_tokenizer_files(opus: Path, sentences: list[str], tmp_path: Path) -> None:
    (opus / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "pad_token": "<pad>"}))
    student = read_student(opus, "summarize")
    expected = transformers.AutoTokenizer.from_pretrained(opus)
    for text in [*sentences, ">>fra<< a library", "a  new\tline\n", "x y z Q", "ﬁve ½"]:
        assert student.tokenizer.encode(text).ids == expected(text)["input_ids"], text
    for text in sentences:
        assert student.tokenizer.decode(student.tokenizer.encode(text).ids) == text
    last = student.shape.vocabulary - 1
    assert (student.pad_id, start_ids(student), end_id(student)) == (last, (last,), 0)
    # What only the target's model has can be written, and no text is cut into it.
    foreign = sentencepiece.SentencePieceProcessor(model_file=str(opus / "target.spm"))
    own = sentencepiece.SentencePieceProcessor(model_file=str(opus / "source.spm"))
    pieces = {foreign.id_to_piece(number) for number in range(3, foreign.vocab_size())}
    pieces -= {own.id_to_piece(number) for number in range(own.vocab_size())}
    assert pieces
    for piece in pieces:
        assert student.tokenizer.decode([student.tokenizer.token_to_id(piece)]) == piece.replace("▁", " ").strip()
        assert len(piece) == 1 or piece not in student.tokenizer.encode(piece.replace("▁", " ")).tokens
    student.save(tmp_path / "saved")
    again = read_student(tmp_path / "saved", "summarize")
    assert again.tokenizer.encode(sentences[0]).ids == student.tokenizer.encode(sentences[0]).ids


def test_marians_tokenizers_that_cannot_be_one(opus: Path, sentences: list[str]) -> None:
    (opus / "target_vocab.json").write_text((opus / "vocab.json").read_text())
    with pytest.raises(StudentError, match="one tokenizer"):
        read_student(opus, "summarize")
    (opus / "target_vocab.json").unlink()
    (opus / "source.spm").unlink()
    sentencepiece_model(opus / "source.spm", sentences, 90, model_type="bpe")
    with pytest.raises(StudentError, match="no unigram model"):
        read_student(opus, "summarize")
    (opus / "source.spm").write_bytes(b"\xff\xffno model")
    with pytest.raises(StudentError, match="not a model of sentencepiece"):
        read_student(opus, "summarize")
    (opus / "vocab.json").write_text('{"a": 1}')
    with pytest.raises(StudentError, match="without a gap"):
        read_student(opus, "summarize")


def without(*parts: str) -> Callable[[Weights], Weights]:
    return lambda state: {n: t for n, t in state.items() if not any(part in n for part in parts)}


@pytest.mark.parametrize(
    ("family", "fields", "changed", "words"),
    [
        ("t5", {}, without("decoder."), r"lack decoder\.block"),
        ("t5", {}, without("shared"), r"lack shared\.weight"),
        ("t5", {"num_decoder_layers": 1}, None, "has no use for"),
        ("t5", {"num_layers": 4}, None, r"lack encoder\.block\.3"),
        ("t5", {"feed_forward_proj": "gated-gelu"}, None, r"has no use for|lack"),
        ("t5", {"num_heads": 5}, None, "config.json asks for"),
        ("t5", {"relative_attention_num_buckets": 2}, None, "4 buckets or more"),
        ("t5", {"d_model": ...}, None, "lacks 'd_model'"),
        (
            "t5", {}, lambda state: state | {"encoder.embed_tokens.weight": state["shared.weight"] + 1},
            r"encoder\.embed_tokens\.weight apart from shared",
        ),
        ("bart", {"encoder_attention_heads": 5}, None, "do not divide"),
        ("bart", {"decoder_attention_heads": 0}, None, "do not divide"),
        ("bart", {}, without("layernorm_embedding"), "lack model.encoder.layernorm_embedding"),
        ("bart", {"max_position_embeddings": 60}, None, "66 x 12, and config.json asks for 62"),
        ("bart", {}, lambda state: state | {"final_logits_bias": torch.zeros(1, 7)}, "final_logits_bias of 7"),
        ("marian", {"decoder_ffn_dim": 9}, None, "7 x 12, and config.json asks for 9"),
        ("marian", {"activation_function": "selu"}, None, "'selu', which is not supported"),
        ("marian", {"max_position_embeddings": 10**12}, None, "max_position_embeddings"),
        ("marian", {"decoder_start_token_id": 5000}, None, "decoder_start_token_id has 5000"),
    ],
)  # fmt: skip
def test_checkpoints_that_are_not_whole_are_refused(
    family: str, fields: dict[str, Any], changed: Any, words: str, folder_of: Callable[..., Path]
) -> None:
    folder = folder_of(family)
    change(folder / "config.json", **fields)
    if changed is not None:
        change_weights(folder, changed)
    with pytest.raises(StudentError, match=words):
        read_student(folder, "summarize")


def test_tasks_of_other_kinds_of_students(
    folder_of: Callable[..., Path], make_student: Callable[..., Student]
) -> None:
    folder = folder_of("t5")
    for task in ("generate", "classify"):
        with pytest.raises(StudentError, match=f"does not serve the task '{task}'"):
            read_student(folder, task)  # type: ignore[arg-type]
    with pytest.raises(StudentError, match="does not serve the task 'summarize'"):
        read_student(make_student("bert").source, "summarize")


def test_a_start_that_nothing_names(folder_of: Callable[..., Path]) -> None:
    folder = folder_of("bart")
    (folder / "generation_config.json").unlink()
    change(folder / "config.json", decoder_start_token_id=...)
    with pytest.raises(StudentError, match="decoder_start_token_id"):
        start_ids(read_student(folder, "summarize"))


@pytest.fixture(scope="module")
def wild_folders(
    make_summarizer_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Path]]:
    """By family, a checkpoint and a copy to change."""
    found = {}
    for family in ("t5", "bart", "marian"):
        original, _ = make_summarizer_checkpoint(family)
        found[family] = (original, Path(shutil.copytree(original, tmp_path_factory.mktemp("wild") / family)))
    return found


FIELDS = {
    "t5": ["d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads", "feed_forward_proj",
           "relative_attention_num_buckets", "relative_attention_max_distance", "layer_norm_epsilon"],
    "bart": ["d_model", "encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads",
             "encoder_ffn_dim", "decoder_ffn_dim", "max_position_embeddings", "activation_function",
             "scale_embedding"],
}  # fmt: skip
FIELDS["marian"] = [*FIELDS["bart"], "decoder_vocab_size", "share_encoder_decoder_embeddings"]
EVERYWHERE = ["vocab_size", "tie_word_embeddings", "pad_token_id", "eos_token_id", "decoder_start_token_id",
              "forced_bos_token_id", "num_beams", "scale_decoder_outputs", "task_specific_params"]  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 70) | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@pytest.mark.slow
@settings(max_examples=120, deadline=None, derandomize=True)
@given(family=st.sampled_from(sorted(FIELDS)), data=st.data(), value=values)
def test_wild_configurations_are_refused_or_read(
    wild_folders: dict[str, tuple[Path, Path]], family: str, data: st.DataObject, value: Any
) -> None:
    original, folder = wild_folders[family]
    field = data.draw(st.sampled_from(FIELDS[family] + EVERYWHERE))
    shutil.copy(original / "config.json", folder)
    change(folder / "config.json", **{field: value})
    with contextlib.suppress(StudentError):
        student = read_student(folder, "summarize")
        assert all(number < student.shape.vocabulary for number in student.eos_ids)
        assert student.max_tokens >= 1
