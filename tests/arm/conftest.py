"""The device side from the built wheel, a bundle made here, and a userland for each Raspberry Pi."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))  # tests are no package; these two modules are not tests

from boards import BOARDS  # noqa: E402
from userland import Userland  # noqa: E402

TOPICS = ROOT / "samples/debian_topics"
TEXTS = 16
NOT_SOURCE = shutil.ignore_patterns(
    ".*", "build", "dist", "demo", "*.egg-info", "__pycache__", "samples", "tests", "docs"
)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "checkout", ignore=NOT_SOURCE)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(folder / "checkout")],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def userland(wheel: Path) -> Userland:
    """In the checkout's folder ``.arm``, so that the next run finds what was downloaded."""
    made = Userland(ROOT / ".arm")
    made.prepare()
    made.install(wheel)
    for board in BOARDS:
        made.add_board(board)
    return made


@pytest.fixture(scope="session")
def texts() -> list[str]:
    with gzip.open(TOPICS / "test.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in islice(file, TEXTS)]


@pytest.fixture(scope="session")
def texts_file(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="session")
def bundle(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of three layers in both int8 precisions for all runtimes, by the real exporters."""
    from edgescribe.converters.make_bundle import make_bundle
    from edgescribe.converters.torch_graph import TorchGraph
    from edgescribe.converters.training import calibrate
    from edgescribe.converters.training_data import make_examples
    from edgescribe.runtimes.registry import RUNTIMES

    student = random_student(texts)
    graphs = {}
    for precision in ("w8a8-static", "w8a8-dynamic"):
        graphs[precision] = TorchGraph(student, precision)
        calibrate(graphs[precision], make_examples(student, texts, [0] * len(texts)))
    out = tmp_path_factory.mktemp("bundle") / "topics"
    made = make_bundle(
        student, graphs, RUNTIMES, out, texts=texts, source=student, recipe={}, seed=0, data_sha256={}
    )  # fmt: skip
    return made.folder


def random_student(texts: list[str]) -> Any:
    """A BERT with random weights whose tokenizer was trained on the texts."""
    import torch
    from edgescribe.converters.anatomy import anatomy_of
    from edgescribe.converters.student import Student
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=1200, special_tokens=special))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    labels = ("hardware", "games", "network", "sound", "text", "web")
    config = {
        "model_type": "bert", "vocab_size": tokenizer.get_vocab_size(), "hidden_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 3, "intermediate_size": 200, "max_position_embeddings": 128, "type_vocab_size": 2,
        "hidden_act": "gelu", "layer_norm_eps": 1e-12, "id2label": {str(i): label for i, label in enumerate(labels)},
    }  # fmt: skip
    anatomy = anatomy_of("bert")
    shape = anatomy.shape(config)
    sizes = {"vocabulary": shape.vocabulary, "positions": shape.positions, "types": 2, "labels": len(labels),
             "neurons": shape.neurons}  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, parameter in anatomy.parameters_of("classify", shape.layers).items():
        drawn = torch.randn([sizes.get(axis, shape.hidden) for axis in parameter.axes], generator=generator)
        if parameter.kind == "norm":
            state[name] = 0.1 * drawn + (1.0 if name.endswith("weight") else 0.0)
        else:
            state[name] = drawn * (1.5 / drawn.shape[-1] ** 0.5 if parameter.kind == "matrix" else 0.3)
    return Student(config, state, tokenizer, {}, "classify", labels, 128, 0, "random", "0" * 64)
