"""A writer from checkpoint to a bundle that writes: pruned, trained in int4, evaluated on its engines, reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import edgescribe
import pytest
import transformers
from edgescribe.converters.checkpoint import load_graph
from edgescribe.converters.conversion_request import read_request
from edgescribe.converters.cost import estimate_cost
from edgescribe.converters.recipe import Recipe, Shares, read_recipe
from edgescribe.converters.training import TrainingSettings
from edgescribe.errors import UsageError
from edgescribe.runtimes.onnxruntime_decoder import DECODER
from edgescribe.sdk.measure import Effort

RUNTIMES = ("onnxruntime", "openvino", "litert")
SENTENCE = "a small game of chess for two players and the network daemon routes packets between hosts"
WORDS = SENTENCE.split()
BRIEF = Effort(samples=8, seconds=0, warmup=1)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("texts")
    found = {}
    for name, count in (("train", 48), ("evaluation", 12)):
        turns = [[(number * 7 + place * 3) % len(WORDS) for place in range(40)] for number in range(count)]
        rows = [" ".join(WORDS[place] for place in places) for places in turns]
        found[name] = folder / f"{name}.jsonl"
        found[name].write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    return found


@pytest.fixture(scope="module")
def student(make_writer_checkpoint: Callable[..., tuple[Path, Any]]) -> Path:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    sizes |= {"intermediate_size": 96, "num_hidden_layers": 3, "max_position_embeddings": 128}
    return make_writer_checkpoint("llama", **sizes)[0]


@pytest.fixture(scope="module")
def conversion(student: Path, texts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    losses = read_recipe("writer-int4").training.losses
    training = TrainingSettings(epochs=1, batch_size=8, learning_rate=1e-3, losses=losses)
    keep = Shares(layers=0.67, neurons=0.67)
    recipe = Recipe("small", "w4a8-dynamic", keep, training=training, train_tokens=48, max_tokens=128)
    return edgescribe.convert(
        student,
        task="generate",
        devices=["raspberry-pi-5"],
        out=tmp_path_factory.mktemp("converted") / "bundle",
        recipe=recipe,
        runtimes=RUNTIMES,
        effort=BRIEF,
        **texts,
    )


def test_the_bundle_writes_on_every_runtime(conversion: Any) -> None:
    folder = conversion.bundle.folder
    written = {}
    for runtime in RUNTIMES:
        with edgescribe.load_writer(folder, runtime=runtime) as writer:
            assert writer.effective.runtime == runtime
            assert writer.chats
            assert writer.context <= 128
            result = writer.generate("a small game", max_new_tokens=12, temperature=0.0)
            assert result.finish_reason in ("length", "stop")
            written[runtime] = result.tokens
            answer = writer.chat([{"role": "user", "content": "chess"}], max_new_tokens=4)
            assert answer.prompt_tokens > 1
    # About 1,200 tokens of a student that hardly tells them apart: half a point is six of them.
    assert conversion.report.agreements[0].equal_predictions > 0.8
    assert conversion.report.agreements[0].spread_points < 2


def test_training_taught_it_the_texts(conversion: Any) -> None:
    stages = {stage.name: stage.metrics.values() for stage in conversion.report.stages}
    before = stages.pop("student")
    assert set(stages) == {f"{runtime}/w4a8-dynamic" for runtime in RUNTIMES}
    for values in stages.values():
        assert values["cross_entropy"] < before["cross_entropy"]


def test_figures_are_in_the_report_and_the_bundle(conversion: Any) -> None:
    page = (conversion.report_folder / "report.html").read_text(encoding="utf-8")
    for words in ("What they write", "Cross-entropy", "First token", "Tokens/s"):
        assert words in page
    content = json.loads((conversion.report_folder / "report.json").read_text(encoding="utf-8"))
    assert len(content["samples"][0]["texts"]) == 1 + len(RUNTIMES)
    manifest = conversion.bundle.manifest
    for measurement in manifest.measurements:
        assert measurement.ttft_ms is not None
        assert measurement.tokens_per_s is not None
    findings = {finding.key for verdict in conversion.report.verdicts for finding in verdict.findings}
    assert {"ttft_ms", "tokens_per_s", "peak_rss_mib", "disk_mib"} <= findings


def test_load_tells_how_to_open_a_writer(conversion: Any) -> None:
    with pytest.raises(UsageError, match="load_writer"):
        edgescribe.load(conversion.bundle.folder)


def test_stages_alone_come_to_a_bundle_too(
    student: Path, texts: dict[str, Path], tmp_path: Path
) -> None:
    edgescribe.prune_checkpoint(
        student, task="generate", out=tmp_path / "pruned", pruning=edgescribe.Pruning(layers=2), train=texts["train"]
    )
    training = TrainingSettings(epochs=1, batch_size=8, losses=read_recipe("writer-int8").training.losses)
    recipe = Recipe("few", "w8a8-dynamic", keep=Shares(vocabulary=False), training=training, train_tokens=48)
    recovered = tmp_path / "recovered"
    edgescribe.recover_checkpoint(
        tmp_path / "pruned", teacher=student, task="generate", train=texts["train"], out=recovered, recipe=recipe
    )
    assert load_graph(recovered).precision == "w8a8-dynamic"
    bundle = edgescribe.export_checkpoint(
        recovered, out=tmp_path / "bundle", texts=texts["evaluation"], runtimes=["onnxruntime"]
    )
    found = edgescribe.evaluate(bundle.folder, texts["evaluation"], effort=BRIEF)
    assert found.stages[0].metrics is not None
    assert 0 < found.stages[0].metrics.values()["cross_entropy"] < 20


def test_a_domain_is_taught_in_float_from_texts_alone(student: Path, texts: dict[str, Path], tmp_path: Path) -> None:
    domain = read_recipe("writer-domain")
    recipe = replace(domain, training=replace(domain.training, learning_rate=3e-3), train_tokens=48)
    taught = edgescribe.recover_checkpoint(
        student, teacher=student, task="generate", train=texts["train"], validation=texts["evaluation"], recipe=recipe,
        out=tmp_path / "taught",
    )  # fmt: skip
    assert taught.precision == "fp32"
    assert [curve.name for curve in taught.training] == ["float"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(taught.folder)
    ids = tokenizer(json.loads(texts["evaluation"].read_text().splitlines()[0])["text"], return_tensors="pt").input_ids
    before, after = (
        float(transformers.AutoModelForCausalLM.from_pretrained(path)(ids, labels=ids).loss)
        for path in (student, taught.folder)
    )
    assert after < before - 0.5


def test_a_recipe_keeps_the_cache_in_int8(student: Path, texts: dict[str, Path], tmp_path: Path) -> None:
    kept = {}
    for int8_cache in (False, True):
        recipe = replace(read_recipe("writer-round"), int8_cache=int8_cache, max_tokens=64)
        made = edgescribe.recover_checkpoint(
            student, teacher=student, task="generate", train=texts["train"], recipe=recipe,
            out=tmp_path / f"rounded-{int8_cache}",
        )  # fmt: skip
        bundle = edgescribe.export_checkpoint(
            made.folder, out=tmp_path / f"bundle-{int8_cache}", texts=texts["train"], runtimes=["onnxruntime"]
        )
        artifact = bundle.artifact_path(bundle.artifacts("onnxruntime", None)[0])
        kept[int8_cache] = DECODER.predicted_memory(artifact).cache
        with edgescribe.load_writer(bundle.folder, runtime="onnxruntime") as writer:
            assert writer.generate(SENTENCE, max_new_tokens=8, temperature=0.0).text
    assert kept[False] == 4 * kept[True]


def test_an_interrupted_conversion_is_taken_up(student: Path, texts: dict[str, Path], tmp_path: Path) -> None:
    recipe = read_recipe("writer-round")

    def convert(**options: Any) -> Any:
        return edgescribe.convert(
            student, task="generate", devices=["raspberry-pi-5"], out=tmp_path / "bundle", recipe=recipe,
            runtimes=["onnxruntime"], effort=BRIEF, **texts, **options,
        )  # fmt: skip

    def interrupt(advance: Any) -> None:
        if advance.stage == "exporting":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(on_advance=interrupt)
    assert not (tmp_path / "bundle").exists()
    done = convert(resume=True)
    assert done.bundle.manifest.writing is not None


def test_what_it_will_cost_is_told_without_writing(student: Path, texts: dict[str, Path], tmp_path: Path) -> None:
    request = read_request(
        student, task="generate", devices=["raspberry-pi-5"], recipe="writer-int4", runtimes=["onnxruntime"], **texts
    )
    cost = estimate_cost(request, BRIEF)
    assert cost.updates["training on the grid"] >= 1
    assert cost.total_seconds > 0
    assert cost.bundle_mib > 0
    assert list(tmp_path.iterdir()) == []
