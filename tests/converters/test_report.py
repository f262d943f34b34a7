"""The report: what stands in it, that it is one file that loads nothing, and that users' names stay text."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from edgescribe.converters.conversion_report import ConversionReport, Stage, Timing, TrainingCurve
from edgescribe.converters.evaluate import Agreement
from edgescribe.converters.metrics import classification_metrics, embedding_metrics
from edgescribe.converters.report import best_artifact, report_html, write_report
from edgescribe.device_profiles.budgets import Figure, check
from edgescribe.device_profiles.schema import Budget
from edgescribe.errors import OutputError
from edgescribe.sdk.budget_check import BudgetReport
from edgescribe.sdk.manifest import Provenance

LABELS = ("games", "net", "sound")
VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """Elements with their attributes, texts of leaf elements, and whether every element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.faults: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> where {self.open[-3:]} are open")

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.append((self.open[-1], data.strip()))

    @property
    def text(self) -> str:
        return " ".join(" ".join(text.split()) for _, text in self.texts)


def metrics(labels: tuple[str, ...] = LABELS, rows: int = 40, seed: int = 0) -> Any:
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, len(labels), rows)
    logits = generator.normal(size=(rows, len(labels))) + 2 * np.eye(len(labels))[truth]
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return classification_metrics(shares, truth, labels)


def timing(p90: float) -> Timing:
    return Timing(
        how="measured", engine="onnxruntime 1.2", threads=2, tokens=128, samples=256, p50_ms=0.8 * p90, p90_ms=p90,
        p99_ms=2 * p90, throughput_per_s=1000 / p90, peak_rss_mib=71.25, load_ms=40.0, cold_ms=312.0,
    )  # fmt: skip


def verdict(device: str, p90_ms: float, how: Any, memory: float | None = 70.0) -> BudgetReport:
    figures = {"p90_ms": Figure(p90_ms, how)}
    if memory is not None:
        figures["peak_rss_mib"] = Figure(memory, "measured")
    return BudgetReport(
        device=device, task="classify", runtime="litert", precision="w8a8-static", threads=4, tokens=128,
        basis=f"{how} somewhere", error_fraction=0.5 if how == "estimated" else None,
        findings=tuple(check(Budget(p90_ms=50.0, peak_rss_mib=150.0), figures)),
    )  # fmt: skip


def make_report(labels: tuple[str, ...] = LABELS, **changes: Any) -> ConversionReport:
    stages = (
        Stage(name="teacher", kind="teacher", metrics=metrics(labels), size_mib=86.7, parameters=22_700_000),
        Stage(name="student", kind="student", metrics=metrics(labels, seed=1), size_mib=13.0, parameters=3_412_345),
        Stage(name="onnxruntime/w8a8-static", kind="artifact", metrics=metrics(labels), size_mib=3.5, timing=timing(4)),
        Stage(name="litert/w8a8-static", kind="artifact", metrics=metrics(labels), size_mib=3.6, timing=timing(3)),
    )
    report = ConversionReport(
        name="topics", task="classify", family="bert", stages=stages,
        verdicts=(verdict("raspberry-pi-5", 20, "estimated"), verdict("host", 3, "measured")),
        agreements=(
            Agreement(
                precision="w8a8-static", runtimes=("onnxruntime", "litert"), equal_predictions=0.9975,
                spread_points=0.25, conforms=True,
            ),
        ),
        training=(
            TrainingCurve(name="float", losses=(3.0, 2.0, 1.0), score_steps=(3,), scores=(0.7,), seconds=2.0),
            TrainingCurve(name="grid", losses=(0.9, 0.8), score_steps=(), scores=(), seconds=1.0),
        ),
        recipe={"name": "light", "keep": {"layers": 0.5, "vocabulary": True}, "prune": None},
        provenance=Provenance(
            source="students/topics", source_sha256="a" * 64, recipe={}, seed=7, data_sha256={"train": "b" * 64},
            versions={"torch": "2.13.0"}, created="2026-01-02T03:04:05Z",
        ),
        machine="x86_64, 2 x Some Core", rows={"train": 8000, "evaluation": 1882}, seconds=431.0,
        notes=("The machine was busy.",),
    )  # fmt: skip
    return msgspec.structs.replace(report, **changes)


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(report_html(make_report()))


def test_every_section_is_there(page: Page) -> None:
    assert not page.faults
    assert not page.open
    for words in (
        "Does it fit?", "Fits by estimate; measure on the device to be sure", "Fits, measured", "20 ms", "estimated",
        "From student to bundle", "before 13 MiB: 3.6 times as much", "3.41 million",
        "Every stage", "teacher", "student", "onnxruntime/w8a8-static", "litert/w8a8-static", "86.7", "71.2", "312",
        "Do the runtimes agree?", "99.75 %", "0.25",
        "Accuracy against latency", "Confusion matrix of litert/w8a8-static", "Training",
        "Is litert/w8a8-static as sure as it is right?", "expected calibration error is",
        "How it was made", "The machine was busy.", "keep.layers", "x86_64, 2 x Some Core", "a" * 64, "b" * 64,
        "torch 2.13.0", "train 8,000, evaluation 1,882", "7 min 11 s",
    ):  # fmt: skip
        assert words in page.text, words


def test_nothing_is_loaded_and_nothing_runs(page: Page) -> None:
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "foreignobject", "base", "form"}
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert name not in ("src", "srcset", "action", "data"), (tag, name)
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "xlink:href"):
                assert value is not None
                assert value.startswith("#"), (tag, value)
            if value and not name.startswith("xmlns"):
                assert "//" not in value, (tag, name, value)
    styles = " ".join(text for tag, text in page.texts if tag == "style")
    assert "url(" not in styles
    assert "@import" not in styles
    (policy,) = [a["content"] for tag, a in page.elements if tag == "meta" and "content-security" in str(a).lower()]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_it_can_be_read_without_seeing_and_on_a_phone(page: Page) -> None:
    assert ("html", {"lang": "en"}) in page.elements
    assert any(a.get("name") == "viewport" for _, a in page.elements)
    pictures = [a for tag, a in page.elements if a.get("role") == "img"]
    assert len(pictures) == sum(tag == "svg" for tag, _ in page.elements) == 5
    assert all(len(str(a["aria-label"])) > 30 for a in pictures)
    headers = [a for tag, a in page.elements if tag == "th"]
    assert headers
    assert all(a.get("scope") in ("row", "col") for a in headers)
    scrollers = [a for tag, a in page.elements if tag == "div" and a.get("class") == "scroll"]
    tables = sum(tag == "table" for tag, _ in page.elements)
    assert sum(a.get("role") == "region" and bool(a.get("aria-label")) for a in scrollers) == tables
    assert "prefers-color-scheme: dark" in page.text


def test_ids_are_the_pages_own_and_references_lead_somewhere(page: Page) -> None:
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    drawn = [str(value) for _, a in page.elements for value in a.values()]
    referred = {name for value in drawn for name in re.findall(r"url\(#([^)]*)\)", value)}
    referred |= {str(a["xlink:href"])[1:] for _, a in page.elements if "xlink:href" in a}
    assert referred
    assert referred <= set(ids)


def test_plots_take_the_pages_colours_and_fonts(page: Page) -> None:
    styles = " ".join(str(a.get("style", "")) for tag, a in page.elements if tag in ("path", "text", "use", "g"))
    assert "var(--ink)" in styles
    assert "var(--series-1)" in styles
    assert not re.search(r"#01010[1-9]|#0[23]0[23]0[23]|#01020[3-6]", styles)
    assert "DejaVu" not in styles


NASTY = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "$\\frac{broken$",
    "a & b; &lt;",
    "</text></svg><script>",
    "{{ 7 * 7 }}",
    "日本語のラベル",
    "line\nbreak\ttab",
    "x" * 300,
    "",
)


@pytest.mark.filterwarnings("ignore:Glyph")
def test_labels_stay_text() -> None:
    plain, nasty = (Page(report_html(make_report(labels))) for labels in (tuple("abcdefghij"), NASTY))
    assert not nasty.faults
    kinds = [[tag for tag, _ in each.elements if tag not in ("path", "use", "g", "text")] for each in (plain, nasty)]
    assert kinds[0] == kinds[1]
    assert not any(name.startswith("on") for _, a in nasty.elements for name in a)
    cells = {text for tag, text in nasty.texts if tag == "th"}
    assert {label.strip() for label in NASTY if label} <= cells


def test_names_from_elsewhere_stay_text() -> None:
    evil = "<script>alert(1)</script>"
    found = report_html(make_report(name=evil, notes=(evil,), recipe={evil: evil}, machine=evil, rows={evil: 1}))
    assert "<script" not in found
    assert found.count("&lt;script&gt;") >= 6


def test_the_json_says_the_same(tmp_path: Path) -> None:
    report = make_report(verdicts=(verdict("pi", 80, "measured"), verdict("host", 3, "measured")))
    assert write_report(report, tmp_path / "made" / "here") == tmp_path / "made" / "here" / "report.html"
    content = json.loads((tmp_path / "made" / "here" / "report.json").read_text(encoding="utf-8"))
    assert [each["met"] for each in content["verdicts"]] == [False, True]
    assert content["best_artifact"] == "litert/w8a8-static"
    assert content["stages"][2]["timing"]["p90_ms"] == 4
    for each in content["verdicts"]:
        del each["met"]
    del content["best_artifact"]
    assert msgspec.convert(content, ConversionReport, strict=False) == report
    assert sorted(path.name for path in (tmp_path / "made" / "here").iterdir()) == ["report.html", "report.json"]


@pytest.mark.parametrize(
    ("p90", "how", "memory", "words"),
    [
        (80, "measured", 70.0, "Over budget: p90 latency"),
        (80, "estimated", 170.0, "Over budget: p90 latency, peak resident memory"),
        (3, "measured", None, "Not known: peak resident memory"),
        (3, "emulated", 70.0, "Fits by estimate"),
        (3, "measured", 70.0, "Fits, measured"),
    ],
)
def test_verdicts_in_words(p90: float, how: str, memory: float | None, words: str) -> None:
    found = Page(report_html(make_report(verdicts=(verdict("pi", p90, how, memory),), stages=(), training=())))
    assert words in found.text


def test_little_to_tell_is_told_without_fault() -> None:
    bare = make_report(stages=(), verdicts=(), agreements=(), training=(), recipe={}, rows={}, notes=())
    found = Page(report_html(bare))
    assert not found.faults
    assert "Nothing was done to the student." in found.text
    assert best_artifact(bare) is None


def test_embeddings_have_their_own_metrics() -> None:
    vectors = np.random.default_rng(0).normal(size=(9, 4))
    scored = embedding_metrics(vectors + 0.1, vectors)
    stages = (
        Stage(name="student", kind="student", metrics=scored, size_mib=13.0),
        Stage(name="litert/fp32", kind="artifact", metrics=scored, size_mib=3.5, timing=timing(3)),
    )
    found = Page(report_html(make_report(task="embed", stages=stages)))
    assert "Spearman" in found.text
    assert "Rank correlation against latency" in found.text
    assert "Macro F1" not in found.text
    assert "Confusion" not in found.text


def test_many_labels_are_cut_in_the_picture_and_not_in_the_table() -> None:
    labels = tuple(f"label-{number}" for number in range(60))
    best = Stage(name="litert/fp32", kind="artifact", metrics=metrics(labels, rows=400), size_mib=3.5)
    found = Page(report_html(make_report(stages=(best,), training=())))
    assert "The 30 labels with the fewest examples are left out." in found.text
    assert {text for tag, text in found.texts if tag == "th"} >= set(labels)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        write_report(make_report(stages=(), training=()), tmp_path / "file")
    (tmp_path / "made" / "report.html").mkdir(parents=True)
    with pytest.raises(OutputError, match="cannot be written"):
        write_report(make_report(stages=(), training=()), tmp_path / "made")
    assert not [path for path in (tmp_path / "made").iterdir() if path.name.startswith(".")]
