"""Bundles made from tiny real students: what they answer on the real engines, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import edgescribe
import msgspec
import numpy as np
import pytest
import torch
from edgescribe.converters.export.known_answers import make_known_answers, make_reference
from edgescribe.converters.freeze import freeze
from edgescribe.converters.make_bundle import add_results, export, make_bundle
from edgescribe.converters.metrics import classification_metrics
from edgescribe.converters.predict import predict
from edgescribe.converters.read import read_student
from edgescribe.converters.student import Student
from edgescribe.converters.torch_graph import TorchGraph
from edgescribe.converters.training import calibrate
from edgescribe.converters.training_data import make_examples, make_tag_examples
from edgescribe.errors import DataError, OutputError, StudentError, UsageError, WrongAnswerError
from edgescribe.runtimes.registry import open_artifact
from edgescribe.sdk.bundle import Bundle, known_answers, read_bundle
from edgescribe.sdk.bundle_writer import write_bundle
from edgescribe.sdk.measure import Effort, measure_process

RUNTIMES = ("onnxruntime", "openvino", "litert")
STATIC, DYNAMIC = "w8a8-static", "w8a8-dynamic"


@pytest.fixture
def make_student(make_checkpoint: Callable[..., Any]) -> Callable[..., Student]:
    def make(family: str = "bert", task: Any = "classify", seed: int = 0, **options: Any) -> Student:
        folder, _ = make_checkpoint(family, task, seed, **options)
        return read_student(folder, task)

    return make


@pytest.fixture
def graph_of(sentences: list[str]) -> Callable[..., TorchGraph]:
    def make(student: Student, precision: str = STATIC) -> TorchGraph:
        graph = TorchGraph(student, precision).eval()
        calibrate(graph, make_examples(student, sentences, None))
        return graph

    return make


@pytest.fixture
def bundle_of(sentences: list[str], graph_of: Callable[..., TorchGraph], tmp_path: Path) -> Callable[..., Bundle]:
    def make(student: Student, precisions: tuple[str, ...] = (STATIC,), **options: Any) -> Bundle:
        options = {"texts": sentences, "source": student, "recipe": {"name": "round"}, "seed": 3} | options
        out = options.pop("out", tmp_path / "bundle")
        runtimes = options.pop("runtimes", RUNTIMES)
        graphs = {precision: graph_of(student, precision) for precision in precisions}
        return make_bundle(student, graphs, runtimes, out, data_sha256={"train": "1" * 64}, **options)

    return make


@pytest.mark.slow
def test_every_artifact_loads_and_answers_as_torch_does(
    make_student: Callable[..., Student],
    bundle_of: Callable[..., Bundle],
    graph_of: Callable[..., TorchGraph],
    sentences: list[str],
) -> None:
    student = make_student()
    bundle = bundle_of(student, (STATIC, DYNAMIC, "fp32"))
    assert len(bundle.manifest.artifacts) == 9
    examples = make_examples(student, sentences, None)
    for precision in (STATIC, DYNAMIC, "fp32"):
        wanted = np.stack(predict(graph_of(student, precision), examples))
        shares = torch.softmax(torch.from_numpy(wanted), -1).numpy()
        for runtime in RUNTIMES:
            with edgescribe.load(bundle.folder, runtime=runtime, precision=precision) as loaded:
                found = loaded.classify(sentences)
            got = np.array([list(each.scores.values()) for each in found])
            assert np.abs(got - shares).max() < (1e-4 if precision == "fp32" else 0.1), (runtime, precision)


def test_the_manifest_says_where_the_bundle_comes_from(
    make_student: Callable[..., Student], bundle_of: Callable[..., Bundle]
) -> None:
    student = make_student()
    manifest = bundle_of(student, runtimes=("litert",)).manifest
    assert manifest.labels == ("games", "net", "sound")
    assert manifest.name == Path(student.source).name
    assert manifest.artifacts[0].buckets == (32,)
    told = manifest.provenance
    assert (told.source, told.source_sha256, told.seed) == (student.source, student.sha256, 3)
    assert told.recipe == {"name": "round"}
    assert told.data_sha256 == {"train": "1" * 64}
    assert told.versions["torch"].startswith("2.")
    assert told.created.endswith("Z")


@pytest.mark.parametrize(
    ("family", "task"), [("bert", "tag"), ("bert", "embed"), ("xlnet", "classify"), ("roberta", "tag")]
)
def test_other_tasks_and_families(
    family: str,
    task: str,
    make_student: Callable[..., Student],
    bundle_of: Callable[..., Bundle],
    sentences: list[str],
) -> None:
    student = make_student(family, task)
    # XLNet with random weights answers so evenly that rounding alone can exceed what known answers allow.
    bundle = bundle_of(student, ("fp32",) if family == "xlnet" else (STATIC,), max_tokens=24)
    assert bundle.manifest.tokenizer.padding_side == student.anatomy.padding_side
    answers = []
    for runtime in RUNTIMES:
        with edgescribe.load(bundle.folder, runtime=runtime) as loaded:
            answers.append(getattr(loaded, task)(sentences[0]))
    assert len(answers) == 3


def test_known_answers_tell_zeros_and_constants_from_the_student(
    make_student: Callable[..., Student], bundle_of: Callable[..., Bundle]
) -> None:
    for artifact in bundle_of(make_student(), (STATIC, "fp32")).manifest.artifacts:
        (answer,) = known_answers(artifact)
        first, second = answer.expected["logits"]
        assert np.abs(first).max() > 2 * answer.tolerance
        assert np.abs(second).max() > 2 * answer.tolerance
        assert np.abs(first - second).max() > 2 * answer.tolerance
        assert 0 in answer.feeds["attention_mask"] or first.shape != second.shape
        assert answer.feeds["input_ids"].shape[1] <= 24


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("broken", ["zeros", "others"])
def test_an_artifact_that_answers_otherwise_is_found_on_load(
    runtime: str,
    broken: str,
    make_student: Callable[..., Student],
    bundle_of: Callable[..., Bundle],
    graph_of: Callable[..., TorchGraph],
    tmp_path: Path,
) -> None:
    student = make_student()
    bundle = bundle_of(student, runtimes=(runtime,))
    if broken == "zeros":
        heads = {name: torch.zeros_like(student.state[name]) for name in student.state if "classifier" in name}
        other = student.with_state(student.state | heads)
    else:
        other = make_student(seed=5)
    entries = bundle.manifest.artifacts[0].files
    files = {entry.path: tmp_path / "other" / entry.path for entry in entries}
    files[entries[0].path].parent.mkdir(parents=True)
    export(other, runtime, freeze(graph_of(other)), files[entries[0].path], (32,))
    files["tokenizer.json"] = bundle.folder / "tokenizer.json"
    write_bundle(bundle.manifest, files, tmp_path / "swapped")
    with pytest.raises(WrongAnswerError):
        edgescribe.load(tmp_path / "swapped")


@pytest.mark.parametrize("precision", ["fp32", STATIC])
def test_an_artifact_unlike_the_reference_gets_no_known_answers(
    precision: str,
    make_student: Callable[..., Student],
    graph_of: Callable[..., TorchGraph],
    sentences: list[str],
    tmp_path: Path,
) -> None:
    student, other = make_student(), make_student(seed=5)
    path = tmp_path / "other.onnx"
    export(other, "onnxruntime", freeze(graph_of(other, precision)), path)
    reference = make_reference(graph_of(student, precision), sentences, 32)
    session = open_artifact("onnxruntime", path)
    with pytest.raises(WrongAnswerError, match="off the torch reference"):
        make_known_answers(session, reference, f"onnxruntime/{precision}")


def test_a_student_whose_answers_are_all_zero_is_refused(
    make_student: Callable[..., Student], bundle_of: Callable[..., Bundle], tmp_path: Path
) -> None:
    student = make_student()
    zeros = {name: torch.zeros_like(tensor) for name, tensor in student.state.items()}
    with pytest.raises(StudentError, match="all 0"):
        bundle_of(student.with_state(zeros), ("fp32",))
    assert not list(tmp_path.glob("*bundle*"))


def test_too_few_texts_leave_nothing_behind(
    make_student: Callable[..., Student], bundle_of: Callable[..., Bundle], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="two different texts"):
        bundle_of(make_student(), texts=["one", "one", " "])
    assert not list(tmp_path.glob("*bundle*"))


def test_an_existing_bundle_is_replaced_only_with_force(
    make_student: Callable[..., Student], bundle_of: Callable[..., Bundle]
) -> None:
    student = make_student()
    first = bundle_of(student, runtimes=("onnxruntime",))
    with pytest.raises(OutputError, match="exists already"):
        bundle_of(student, runtimes=("onnxruntime",))
    assert read_bundle(first.folder).manifest == first.manifest
    second = bundle_of(student, runtimes=("litert",), force=True)
    assert [artifact.runtime for artifact in read_bundle(second.folder).manifest.artifacts] == ["litert"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtimes": ("abacus",)}, "no runtime 'abacus'"),
        ({"runtimes": ()}, "at least one"),
        ({"runtimes": ("litert", "litert")}, "named twice"),
        ({"max_tokens": 33}, "reads 2 to 32"),
        ({"max_tokens": 1}, "reads 2 to 32"),
    ],
)
def test_what_cannot_be_made_is_refused_at_once(
    options: dict[str, Any], message: str, make_student: Callable[..., Student], bundle_of: Callable[..., Bundle]
) -> None:
    with pytest.raises(UsageError, match=message):
        bundle_of(make_student(), **options)


def test_a_graph_under_another_precision_is_refused(
    make_student: Callable[..., Student], graph_of: Callable[..., TorchGraph], sentences: list[str], tmp_path: Path
) -> None:
    student = make_student()
    with pytest.raises(UsageError, match="is of 'fp32'"):
        make_bundle(
            student, {STATIC: graph_of(student, "fp32")}, RUNTIMES, tmp_path / "bundle",
            texts=sentences, source=student, recipe={}, seed=0, data_sha256={},
        )  # fmt: skip


@pytest.mark.slow
def test_a_build_can_be_repeated_to_the_byte(
    make_student: Callable[..., Student],
    bundle_of: Callable[..., Bundle],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    student = make_student()
    first, second = (bundle_of(student, out=tmp_path / name) for name in ("one", "two"))
    assert first.manifest.provenance.created == "2023-11-14T22:13:20Z"
    assert (first.folder / "bundle.json").read_bytes() == (second.folder / "bundle.json").read_bytes()


def test_a_strange_source_date_epoch_is_refused(
    make_student: Callable[..., Student], bundle_of: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
        bundle_of(make_student(), runtimes=("onnxruntime",))


def test_results_are_added_and_the_rest_stays(
    make_student: Callable[..., Student], bundle_of: Callable[..., Bundle]
) -> None:
    bundle = bundle_of(make_student(), runtimes=("onnxruntime", "litert"))
    effort = Effort(samples=3, seconds=0, warmup=1)
    measured = ("onnxruntime", "litert")
    reports = [measure_process(bundle.folder, runtime, tokens=16, effort=effort) for runtime in measured]
    metrics = classification_metrics(np.array([[0.9, 0.1], [0.2, 0.8]]), [0, 1])
    (bundle.folder / "notes.txt").write_text("kept")
    changed = add_results(bundle, {"student": metrics, f"litert/{STATIC}": metrics}, reports)
    assert changed.manifest == read_bundle(bundle.folder).manifest
    assert changed.manifest.quality["student"]["accuracy"] == 1.0
    assert {each.runtime for each in changed.manifest.measurements} == {"onnxruntime", "litert"}
    assert all(each.peak_rss_mib > 0 and each.how == "measured" for each in changed.manifest.measurements)
    assert changed.manifest.artifacts == bundle.manifest.artifacts
    assert (bundle.folder / "notes.txt").read_text() == "kept"
    plain = msgspec.structs.replace(changed.manifest, quality={}, measurements=())
    assert plain == bundle.manifest


def test_a_taggers_words_without_tags_do_not_matter(
    make_student: Callable[..., Student], bundle_of: Callable[..., Bundle], sentences: list[str]
) -> None:
    student = make_student("bert", "tag")
    bundle = bundle_of(student, ("fp32",), runtimes=("onnxruntime",))
    (example,) = make_tag_examples(student, sentences[:1], [[0] * len(sentences[0].split())])
    (wanted,) = predict(TorchGraph(student), [example])
    with edgescribe.load(bundle.folder) as loaded:
        tags = loaded.tag(sentences[0])
    assert [student.labels[number] for number in wanted[example.labels >= 0].argmax(-1)] == [tag.label for tag in tags]
