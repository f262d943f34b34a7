"""A summariser from checkpoint to bundle: planned, pruned, taught, exported, evaluated on its engines, reported."""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import edgescribe
import pytest
from edgescribe.converters.conversion_request import read_request
from edgescribe.converters.cost import estimate_cost
from edgescribe.converters.recipe import read_recipe
from edgescribe.converters.recover_summarizer import KEPT_SUMMARIES
from edgescribe.converters.stages import stages_folder
from edgescribe.errors import UsageError
from edgescribe.sdk.measure import Effort

RUNTIMES = ("onnxruntime", "openvino", "litert")
BRIEF = Effort(samples=8, seconds=0, warmup=1)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recipe() -> Any:
    shallow = read_recipe("summarizer-trimmed")
    training = replace(shallow.training, learning_rate=5e-3, mixed_precision="no")
    return replace(shallow, training=training, train_tokens=48, max_tokens=60, summary_tokens=16, teacher_beams=2)


@pytest.fixture(scope="module")
def conversion(summary_files: Any, easy_profile: Path, recipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return edgescribe.convert(
        **summary_files.arguments(),
        devices=[easy_profile],
        out=tmp_path_factory.mktemp("converted") / "bundle",
        recipe=recipe,
        runtimes=RUNTIMES,
        effort=BRIEF,
    )


def test_the_bundle_summarises_alike_on_every_runtime(
    conversion: Any, summarizer: Any, evaluation_texts: Any
) -> None:
    manifest = conversion.bundle.manifest
    entry = manifest.summarizing
    assert (manifest.task, manifest.family) == ("summarize", "t5")
    assert (entry.source_context, entry.context, entry.prefix) == (60, 16, "summarize: ")
    # Tokens that the domain never uses went, one of the decoder's two layers too.
    assert entry.vocabulary == summarizer.shape.vocabulary - 6
    assert conversion.report.recipe["keep"]["decoder_layers"] == 0.5
    written = {}
    for runtime in RUNTIMES:
        with edgescribe.load_summarizer(conversion.bundle.folder, runtime=runtime) as summarizer:
            assert summarizer.effective.runtime == runtime
            written[runtime] = [summarizer.summarize(text).text for text in evaluation_texts.texts[:10]]
    right = sum(ours == its for ours, its in zip(written["litert"], evaluation_texts.summaries[:10], strict=True))
    assert right >= 8
    (agreement,) = conversion.report.agreements
    assert agreement.runtimes == RUNTIMES
    assert agreement.conforms  # ROUGE-L within half a point
    assert agreement.equal_predictions > 0.98


def test_it_is_nearly_as_good_as_the_student_and_better_than_a_first_sentence(conversion: Any) -> None:
    stages = {stage.name: stage for stage in conversion.report.stages}
    assert list(stages) == ["first sentence", "student", *(f"{runtime}/w4a8-dynamic" for runtime in RUNTIMES)]
    student, baseline = stages["student"].metrics, stages["first sentence"].metrics
    assert baseline.score < 0.5
    for runtime in RUNTIMES:
        metrics = stages[f"{runtime}/w4a8-dynamic"].metrics
        assert metrics.score > student.score - 0.05
        assert metrics.agreement > 0.8
        assert 1 < metrics.perplexity < 1.5
        assert metrics.scores["rougeL"].low <= metrics.score <= metrics.scores["rougeL"].high
        timing = stages[f"{runtime}/w4a8-dynamic"].timing
        assert timing.ttft_ms > 0
        assert timing.tokens_per_s > 0
    assert [curve.name for curve in conversion.report.training] == ["float", "grid"]
    assert conversion.within_budget


def test_texts_stand_side_by_side_in_the_report(conversion: Any) -> None:
    page = html.unescape((conversion.report_folder / "report.html").read_text(encoding="utf-8"))
    content = json.loads((conversion.report_folder / "report.json").read_text(encoding="utf-8"))
    for words in ("ROUGE-L", "Compression", "What they write", "Tokens/s", "reference", "first sentence", "Writing"):
        assert words in page
    for sample in content["samples"]:
        assert sample["prompt"] in page
        assert list(sample["texts"]) == ["student", *(f"{runtime}/w4a8-dynamic" for runtime in RUNTIMES)]
        for text in (sample["reference"], *sample["texts"].values()):
            assert text in page
    scores = content["stages"][-1]["metrics"]["scores"]
    assert {"value", "low", "high", "unit", "meaning"} == set(scores["rougeL"])
    quality = conversion.bundle.manifest.quality
    assert quality["litert/w4a8-dynamic"]["rougeL"] == scores["rougeL"]["value"]
    assert quality["first sentence"]["rougeL"] < quality["student"]["rougeL"]


def test_an_interrupted_conversion_is_taken_up(
    summary_files: Any, easy_profile: Path, recipe: Any, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"

    def convert(**options: Any) -> Any:
        return edgescribe.convert(
            **summary_files.arguments(), devices=[easy_profile], out=out, recipe=recipe, runtimes=["litert"],
            effort=BRIEF, prefix="summarize: ", **options,
        )  # fmt: skip

    def interrupt(advance: Any) -> None:
        if advance.stage == "training on the grid" and advance.fraction > 0.4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(on_advance=interrupt)
    assert not out.exists()
    kept = stages_folder(out) / "training" / KEPT_SUMMARIES
    assert len(kept.read_text(encoding="utf-8").splitlines()) == 1 + 200
    with pytest.raises(edgescribe.InputError, match=r"recipe\.prefix"):
        edgescribe.convert(
            **summary_files.arguments(), devices=[easy_profile], out=out, recipe=recipe, runtimes=["litert"],
            prefix="tl;dr: ", resume=True,
        )  # fmt: skip
    done = convert(resume=True)
    assert done.bundle.manifest.summarizing.prefix == "summarize: "
    assert not stages_folder(out).exists()


def test_stages_alone_come_to_a_bundle_too(summary_files: Any, recipe: Any, tmp_path: Path) -> None:
    files = summary_files
    edgescribe.prune_checkpoint(
        files.student, task="summarize", out=tmp_path / "pruned", pruning=edgescribe.Pruning(decoder_layers=1),
        train=files.train,
    )  # fmt: skip
    few = replace(recipe, precision="w8a8-dynamic", float_epochs=1, training=replace(recipe.training, epochs=1))
    recovered = edgescribe.recover_checkpoint(
        tmp_path / "pruned", teacher=files.student, task="summarize", train=files.train,
        validation=files.validation, out=tmp_path / "recovered", recipe=few,
    )  # fmt: skip
    assert recovered.precision == "w8a8-dynamic"
    assert [curve.name for curve in recovered.training] == ["float", "grid"]
    bundle = edgescribe.export_checkpoint(
        recovered.folder, out=tmp_path / "bundle", texts=files.evaluation, runtimes=["onnxruntime"], prefix="in short: "
    )
    assert bundle.manifest.summarizing is not None
    assert (bundle.manifest.summarizing.context, bundle.manifest.summarizing.prefix) == (16, "in short: ")
    in_torch = edgescribe.evaluate(recovered.folder, files.evaluation)
    assert [stage.name for stage in in_torch.stages] == ["first sentence", "torch/w8a8-dynamic"]
    found = edgescribe.evaluate(bundle.folder, files.evaluation, effort=BRIEF)
    assert [stage.name for stage in found.stages] == ["first sentence", "onnxruntime/w8a8-dynamic"]
    assert all(stage.metrics is not None and 0 <= stage.metrics.score <= 1 for stage in found.stages)


def test_static_grids_are_calibrated_exported_and_evaluated_by_the_command_line(
    call: Any, summary_files: Any, easy_profile: Path, tmp_path: Path
) -> None:
    files, out = summary_files, tmp_path / "bundle"
    data = ["--train", files.train, "--validation", files.validation, "--eval", files.evaluation]
    brief = ["--samples", "8", "--seconds", "0", "--device", easy_profile, "--json"]
    rounded = ["--recipe", "summarizer-npu-round", "--out", out]
    code, said, complaints = call("convert", files.student, "--task", "summarize", *data, *brief, *rounded)
    assert code == 0, complaints
    once = ["--samples", "8", "--seconds", "0"]
    code, said, complaints = call("evaluate", out, "--eval", files.evaluation, *once, "--json")
    assert code == 0, complaints
    score = {stage["name"]: stage["metrics"]["scores"]["rougeL"]["value"] for stage in json.loads(said)["stages"]}
    assert set(score) == {"first sentence", *(f"{runtime}/w8a8-static" for runtime in RUNTIMES)}
    assert all(score[f"{runtime}/w8a8-static"] > 2 * score["first sentence"] for runtime in RUNTIMES)
    code, said, complaints = call("check", out, "--device", easy_profile)
    assert code == 0, complaints
    text = json.loads(files.evaluation.read_text(encoding="utf-8").splitlines()[0])["text"]
    (tmp_path / "source.txt").write_text(text)
    summaries = set()
    for runtime in RUNTIMES:
        code, said, complaints = call("run", out, "--runtime", runtime, "--input", tmp_path / "source.txt")
        assert code == 0, complaints
        summaries.add(said.strip())
    assert len(summaries) == 1


def test_what_it_will_cost_is_told_without_writing(summary_files: Any, easy_profile: Path, tmp_path: Path) -> None:
    request = read_request(
        **summary_files.arguments(), devices=[easy_profile], recipe="summarizer-strong", runtimes=["litert"]
    )
    cost = estimate_cost(request, BRIEF)
    assert cost.updates == {"recovering in float": 50, "training on the grid": 50}
    assert cost.seconds["the teacher writes summaries"] > 0
    assert cost.parameters[1] < cost.parameters[0]
    assert cost.bundle_mib > 0
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process: exit code, stdout and stderr."""
    from edgescribe.__main__ import run

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


def test_the_command_line(
    call: Any, summary_files: Any, easy_profile: Path, tight_profile: Path, tmp_path: Path
) -> None:
    files, out = summary_files, tmp_path / "bundle"
    common = [files.student, "--task", "summarize", "--runtime", "litert"]
    data = ["--train", files.train, "--validation", files.validation, "--eval", files.evaluation, "--out", out]
    code, said, complaints = call("plan", *common, "--device", easy_profile, "--train", files.train)
    assert code == 0, complaints
    assert "summarizer-int8 is chosen" in said
    assert call("plan", *common, "--device", tight_profile)[0] == 3
    code, said, complaints = call("convert", *common, *data, "--device", easy_profile, "--dry-run", "--json")
    assert code == 0, complaints
    assert json.loads(said)["recipe"]["name"] == "summarizer-int8"
    assert not out.exists()
    brief = ["--samples", "8", "--seconds", "0", "--recipe", "summarizer-round"]
    code, said, complaints = call("convert", *common, *data, *brief, "--device", tight_profile)
    assert code == 3, complaints
    assert "ROUGE-L" in said
    assert "over budget: tight" in said
    code, said, complaints = call("evaluate", out, "--eval", files.evaluation, "--samples", "8", "--seconds", "0")
    assert code == 0, complaints
    assert "first sentence" in said
    code, said, complaints = call("convert", *common, *data, *brief, "--device", easy_profile)
    assert code == 4
    assert "exists" in complaints


def test_what_the_command_line_refuses(
    call: Any, summary_files: Any, easy_profile: Path, tmp_path: Path
) -> None:
    files = summary_files
    rest = ["--eval", files.evaluation, "--out", tmp_path / "bundle", "--device", easy_profile]
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "no summary"}\n' * 50)
    code, _, complaints = call("convert", files.student, "--task", "summarize", "--train", bad, *rest)
    assert code == 4
    assert "bad.jsonl:1: no 'summary'" in complaints
    short = ["--train", files.train, "--recipe", tmp_path / "own.toml"]
    (tmp_path / "own.toml").write_text("teacher_summaries = 1.5\n")
    code, _, complaints = call("convert", files.student, "--task", "summarize", *short, *rest)
    assert code == 4
    assert "teacher_summaries is 1.5; give 0 to 1" in complaints
    unknown = shutil.copytree(files.student, tmp_path / "unknown")
    config = json.loads((unknown / "config.json").read_text())
    (unknown / "config.json").write_text(json.dumps(config | {"model_type": "pegasus"}))
    code, _, complaints = call("plan", unknown, "--task", "summarize", "--device", easy_profile)
    assert code == 4
    assert "pegasus" in complaints
    few = ["--summary-tokens", "1", "--out", tmp_path / "bundle"]
    code, _, complaints = call("export", files.student, "--texts", files.evaluation, *few)
    assert code == 2
    assert list(tmp_path.glob("bundle*")) == []


def test_a_prefix_is_for_summarisers_alone(call: Any, topic_files: Any, easy_profile: Path, tmp_path: Path) -> None:
    rest = ["--out", tmp_path / "bundle", "--device", easy_profile, "--runtime", "litert"]
    data = ["--train", topic_files.train, "--eval", topic_files.evaluation]
    code, _, complaints = call("convert", topic_files.student, "--task", "classify", "--prefix", "x", *data, *rest)
    assert code == 2
    assert "a prefix is put before the texts of summarisers" in complaints
    with pytest.raises(UsageError, match="summary tokens and a prefix"):
        edgescribe.export_checkpoint(
            topic_files.student, out=tmp_path / "bundle", texts=topic_files.evaluation, prefix="x"
        )
