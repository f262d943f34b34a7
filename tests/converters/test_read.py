"""Reading students from folders as they come: old, split, halved in precision, damaged, of unknown families."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from edgescribe.converters.read import read_student
from edgescribe.errors import StudentError
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

Make = Callable[..., tuple[Path, Any]]


@pytest.fixture(scope="module")
def original(make_checkpoint: Make) -> Path:
    return make_checkpoint("bert", "classify")[0]


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A checkpoint to change."""
    return Path(shutil.copytree(original, tmp_path / "student"))


def change(path: Path, **fields: Any) -> None:
    content = json.loads(path.read_text())
    content.update(fields)
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))


def change_weights(folder: Path, changed: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in changed(state).items()}, folder / "model.safetensors")


def test_what_a_folder_says_of_the_student(original: Path) -> None:
    student = read_student(original, "classify")
    assert student.labels == ("games", "net", "sound")
    assert student.max_tokens == 32
    assert student.pad_id == student.tokenizer.token_to_id("[PAD]") == 0
    assert student.source == str(original)
    assert student.tokenizer.padding is None
    assert student.tokenizer.truncation is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_widened(folder: Path, dtype: torch.dtype) -> None:
    expected = read_student(folder, "classify")
    change_weights(folder, lambda state: {name: tensor.to(dtype) for name, tensor in state.items()})
    student = read_student(folder, "classify")
    assert all(tensor.dtype == torch.float32 for tensor in student.state.values())
    for name, tensor in student.state.items():
        torch.testing.assert_close(tensor, expected.state[name].to(dtype).float(), rtol=0, atol=0)


def test_weights_in_several_files(folder: Path) -> None:
    expected = read_student(folder, "classify")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, some in parts.items():
        save_file({name: state[name] for name in some}, folder / file)
    index = {"weight_map": {name: file for file, some in parts.items() for name in some}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    student = read_student(folder, "classify")
    assert all(torch.equal(student.state[name], expected.state[name]) for name in expected.state)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(StudentError, match="model-00002-of-00002"):
        read_student(folder, "classify")


@pytest.mark.parametrize(
    "listed", [{}, {"weight_map": 3}, {"weight_map": {"a": "../outside.safetensors"}}, {"weight_map": {"a": 5}}]
)
def test_an_index_that_lists_no_files_of_this_folder(folder: Path, listed: dict[str, Any]) -> None:
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(listed))
    with pytest.raises(StudentError, match="does not list the weight files"):
        read_student(folder, "classify")


def test_pickles_are_taken_on_request_only(folder: Path) -> None:
    expected = read_student(folder, "classify")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(StudentError, match="--allow-pickle"):
        read_student(folder, "classify")
    student = read_student(folder, "classify", allow_pickle=True)
    assert all(torch.equal(student.state[name], expected.state[name]) for name in expected.state)


class Booby:
    """Unpickling one of these would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_pickle_that_runs_code_does_not_even_on_request(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Booby(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(StudentError, match="pickle of plain tensors"):
        read_student(folder, "classify", allow_pickle=True)
    assert not (tmp_path / "ran").exists()


def test_names_of_old_norms(folder: Path) -> None:
    expected = read_student(folder, "classify")

    def old(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in state.items()
        }

    change_weights(folder, old)
    student = read_student(folder, "classify")
    assert all(torch.equal(student.state[name], expected.state[name]) for name in expected.state)


def test_an_old_vocabulary_becomes_a_tokenizer(folder: Path) -> None:
    expected = read_student(folder, "classify").tokenizer
    (folder / "tokenizer.json").unlink()
    words = sorted(expected.get_vocab(), key=expected.get_vocab().__getitem__)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    change(folder / "tokenizer_config.json", tokenizer_class="BertTokenizer")
    student = read_student(folder, "classify")
    text = "A small game of chess, for two players!"
    assert student.tokenizer.encode(text).ids == expected.encode(text).ids


def test_older_folders_name_their_padding_elsewhere(folder: Path) -> None:
    change(folder / "tokenizer_config.json", pad_token=...)
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "[MASK]"}}))
    student = read_student(folder, "classify")
    assert student.pad_id == student.tokenizer.token_to_id("[MASK]")


# Tasks and labels
def test_a_bare_encoder_gets_a_new_head(make_checkpoint: Make) -> None:
    folder, _ = make_checkpoint("roberta", "embed")
    student = read_student(folder, "classify", labels=("a", "b", "c", "d"), seed=3)
    again = read_student(folder, "classify", labels=("a", "b", "c", "d"), seed=3)
    assert student.state["classifier.out_proj.weight"].shape == (4, 12)
    assert torch.equal(student.state["classifier.dense.weight"], again.state["classifier.dense.weight"])


def test_a_classifier_read_for_another_task(original: Path) -> None:
    assert read_student(original, "embed").labels == ()
    assert "embeddings.word_embeddings.weight" in read_student(original, "embed").state
    assert read_student(original, "tag").state["classifier.weight"].shape == (3, 12)


def test_labels_in_another_order_turn_the_head(original: Path) -> None:
    before = read_student(original, "classify")
    after = read_student(original, "classify", labels=("sound", "games", "net"))
    assert torch.equal(after.state["classifier.weight"], before.state["classifier.weight"][[2, 0, 1]])
    assert torch.equal(after.state["classifier.bias"], before.state["classifier.bias"][[2, 0, 1]])
    assert after.config["label2id"] == {"sound": 0, "games": 1, "net": 2}


def test_other_labels_make_the_last_layer_anew(original: Path) -> None:
    before = read_student(original, "classify")
    after = read_student(original, "classify", labels=("x", "y", "z"))
    assert not torch.equal(after.state["classifier.weight"], before.state["classifier.weight"])
    assert torch.equal(after.state["bert.pooler.dense.weight"], before.state["bert.pooler.dense.weight"])


@pytest.mark.parametrize(
    ("labels", "words"), [(("a",), "two are the fewest"), (("a", "a"), "stands for two"), ((), "two are the fewest")]
)
def test_labels_that_are_none(original: Path, labels: tuple[str, ...], words: str) -> None:
    with pytest.raises(StudentError, match=words):
        read_student(original, "classify", labels=labels)


# Refusals
def test_places_that_are_no_checkpoints(folder: Path, tmp_path: Path) -> None:
    for source, words in (
        (tmp_path / "nowhere", "there is no folder"),
        (folder / "config.json", "is a file"),
        (tmp_path, "no config.json"),
        ("nowhere", "there is no folder"),
    ):
        with pytest.raises(StudentError, match=words):
            read_student(source, "classify")


def test_an_unknown_family_says_what_to_write(folder: Path) -> None:
    change(folder / "config.json", model_type="funnel")
    with pytest.raises(StudentError, match=r"'funnel'.*converters/families/funnel\.py.*Anatomy"):
        read_student(folder, "classify")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": ...}, "model_type"),
        ({"model_type": 7}, "model_type"),
        ({"hidden_size": ...}, "hidden_size"),
        ({"hidden_size": "wide"}, "hidden_size 'wide'"),
        ({"hidden_size": 0}, "hidden_size 0"),
        ({"num_attention_heads": 0}, "num_attention_heads 0"),
        ({"num_attention_heads": 5}, "do not divide"),
        ({"vocab_size": 10**12}, "vocab_size"),
        ({"vocab_size": -3}, "vocab_size"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers 2.5"),
        ({"num_hidden_layers": 3}, "lack bert.encoder.layer.2"),
        ({"intermediate_size": 11}, "asks for 11 x 12"),
        ({"layer_norm_eps": "small"}, "epsilon"),
        ({"id2label": [1, 2]}, "id2label"),
        ({"id2label": {"zero": "a"}}, "id2label"),
        ({"id2label": {"0": "a", "2": "b"}}, "without a gap"),
        ({"id2label": {"0": "a", "1": "b"}}, "classifier.weight"),
        ({"id2label": {"0": "a", "1": "a", "2": "b"}}, "stands for two"),
        ({"problem_type": "multi_label_classification"}, "problem_type"),
        ({"hidden_act": "mish"}, "mish"),
    ],
)
def test_configurations_that_cannot_be(folder: Path, fields: dict[str, Any], words: str) -> None:
    change(folder / "config.json", **fields)
    with pytest.raises(StudentError, match=words):
        read_student(folder, "classify")


def test_weights_that_are_not_of_this_student(folder: Path) -> None:
    name = "bert.encoder.layer.0.attention.self.query.weight"
    for changed, words in (
        (lambda state: {each: state[each] for each in state if each != name}, f"lack {name}"),
        (lambda state: {**state, name: state[name][:, :8]}, "is 12 x 8, and config.json asks for 12 x 12"),
        (lambda state: {**state, name: state[name].to(torch.int8)}, "stored as torch.int8"),
        (lambda state: {**state, name: state[name] * float("nan")}, "not finite"),
    ):
        whole = (folder / "model.safetensors").read_bytes()
        change_weights(folder, changed)
        with pytest.raises(StudentError, match=words):
            read_student(folder, "classify")
        (folder / "model.safetensors").write_bytes(whole)


def test_no_weights_and_no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(StudentError, match=r"no tokenizer\.json"):
        read_student(folder, "classify")
    (folder / "model.safetensors").unlink()
    with pytest.raises(StudentError, match=r"no model\.safetensors"):
        read_student(folder, "classify")


def test_a_tokenizer_of_another_student(folder: Path, make_tokenizer: Callable[..., Any]) -> None:
    make_tokenizer("roberta").save(str(folder / "tokenizer.json"))
    with pytest.raises(StudentError, match="not of one student"):
        read_student(folder, "classify")


def test_a_table_without_token_types(folder: Path) -> None:
    name = "bert.embeddings.token_type_embeddings.weight"
    change_weights(folder, lambda state: {**state, name: state[name][:0]})
    with pytest.raises(StudentError, match="0 x 12"):
        read_student(folder, "classify")


FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def damaged(content: bytes, data: st.DataObject) -> bytes:
    kind = data.draw(st.sampled_from(["cut", "flip", "insert", "replace"]))
    place = data.draw(st.integers(0, len(content) - 1))
    if kind == "cut":
        return content[:place]
    if kind == "flip":
        changed = bytearray(content)
        changed[place] ^= data.draw(st.integers(1, 255))
        return bytes(changed)
    if kind == "insert":
        return content[:place] + data.draw(st.binary(min_size=1, max_size=8)) + content[place:]
    return data.draw(st.binary(max_size=64))


@settings(max_examples=120, deadline=None)
@given(file=st.sampled_from(FILES), data=st.data())
def test_damaged_files_are_refused_or_read(
    original: Path, tmp_path_factory: pytest.TempPathFactory, file: str, data: st.DataObject
) -> None:
    """Whatever happened to a file, reading ends in a student whose program runs, or in a StudentError."""
    from edgescribe.converters.torch_graph import TorchGraph

    folder = tmp_path_factory.mktemp("damaged")
    for name in FILES:
        (folder / name).write_bytes((original / name).read_bytes())
    (folder / file).write_bytes(damaged((original / file).read_bytes(), data))
    student = None
    with contextlib.suppress(StudentError):
        student = read_student(folder, "classify")
    shutil.rmtree(folder)
    if student is None:
        return
    ids = torch.tensor([[2, 5, 3]])
    with torch.no_grad():
        logits = TorchGraph(student).run({"input_ids": ids, "attention_mask": torch.ones_like(ids)})["logits"]
    assert logits.shape == (1, len(student.labels))


@settings(max_examples=60, deadline=None)
@given(
    field=st.sampled_from(
        ["hidden_size", "num_hidden_layers", "vocab_size", "id2label", "pad_token_id", "layer_norm_eps", "hidden_act",
         "max_position_embeddings", "initializer_range", "type_vocab_size", "model_type"]
    ),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=5,
    ),
)  # fmt: skip
def test_wild_configurations_are_refused_or_read(
    original: Path, tmp_path_factory: pytest.TempPathFactory, field: str, value: Any
) -> None:
    folder = tmp_path_factory.mktemp("wild")
    for name in FILES:
        (folder / name).write_bytes((original / name).read_bytes())
    change(folder / "config.json", **{field: value})
    with contextlib.suppress(StudentError):
        read_student(folder, "classify")
    shutil.rmtree(folder)


# The hub
@pytest.fixture
def silent_hub() -> Iterator[str]:
    """A server that takes connections and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.setblocking(False)
        asked = 0
        with contextlib.suppress(BlockingIOError):
            while asked < 64:
                server.accept()[0].close()
                asked += 1
        assert asked <= 4, "a hub that says nothing is not asked again and again"


@pytest.fixture
def closed_hub() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.slow
@pytest.mark.parametrize("case", ["offline", "closed", "silent"])
def test_a_hub_that_gives_nothing(case: str, silent_hub: str, closed_hub: str, tmp_path: Path) -> None:
    """One clear message, and soon: in a process of its own, since the hub's settings are read at import."""
    settings_of = {
        "offline": {"HF_HUB_OFFLINE": "1"},
        "closed": {"HF_ENDPOINT": closed_hub},
        "silent": {"HF_ENDPOINT": silent_hub},
    }
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {"HF_HOME": str(tmp_path), **settings_of[case]}
    program = (
        "from edgescribe.converters.read import read_student\n"
        "from edgescribe.errors import StudentError\n"
        "try:\n"
        "    read_student('someone/some-student', 'classify')\n"
        "except StudentError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=500, check=True
    )
    assert "the hub did not give 'someone/some-student'" in done.stdout
    assert "download the checkpoint and give its folder" in done.stdout
