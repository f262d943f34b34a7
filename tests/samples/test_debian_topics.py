"""The shipped topic data is what its page says, and the rules that made it hold."""

from __future__ import annotations

import collections
import gzip
import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "samples/debian_topics"
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def build() -> Any:
    sys.path.insert(0, str(FOLDER))
    import build_dataset

    return build_dataset


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict[str, str]]]:
    return {
        split: [json.loads(line) for line in gzip.open(FOLDER / f"{split}.jsonl.gz", "rt", encoding="utf-8")]
        for split in SPLITS
    }


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return json.loads((FOLDER / "figures.json").read_text())


def test_figures_are_those_of_the_files(rows: dict[str, list[dict[str, str]]], figures: dict[str, Any]) -> None:
    for split in SPLITS:
        unpacked = gzip.decompress((FOLDER / f"{split}.jsonl.gz").read_bytes())
        assert hashlib.sha256(unpacked).hexdigest() == figures["sha256"][split]
        assert len(rows[split]) == figures["rows"][split]
        count = collections.Counter(row["label"] for row in rows[split])
        assert count == {label: by_split[split] for label, by_split in figures["rows_per_label"].items()}
    assert len(figures["rows_per_label"]) == 20


def test_provenance_names_the_same_figures(figures: dict[str, Any]) -> None:
    page = (FOLDER / "PROVENANCE.md").read_text()
    for count in figures["rows"].values():
        assert f"{count:,}" in page
    assert f"{sum(figures['rows'][split] for split in SPLITS):,} English texts" in page
    assert figures["release"]["version"] in page


def test_no_text_stands_in_two_splits(rows: dict[str, list[dict[str, str]]]) -> None:
    seen: dict[str, str] = {}
    for split in SPLITS:
        for row in rows[split]:
            key = re.sub(r"\W+", " ", row["text"].lower())
            assert key not in seen, f"{row['package']} ({split}) has the text of {seen[key]}"
            seen[key] = f"{row['package']} ({split})"


def test_no_near_copy_stands_in_two_splits(build: Any, rows: dict[str, list[dict[str, str]]]) -> None:
    index: dict[tuple[str, ...], list[int]] = collections.defaultdict(list)
    held_out = [build.runs(row["text"]) for row in rows["test"]]
    for number, found in enumerate(held_out):
        for run in found:
            index[run].append(number)
    for row in rows["train"] + rows["validation"]:
        found = build.runs(row["text"])
        shared = collections.Counter(number for run in found for number in index.get(run, ()))
        for number, count in shared.items():
            other = rows["test"][number]["package"]
            assert 2 * count <= min(len(held_out[number]), len(found)), (row["package"], other)


def test_texts_are_clean(rows: dict[str, list[dict[str, str]]]) -> None:
    for split in SPLITS:
        for row in rows[split]:
            assert set(row) == {"text", "label", "package"}
            assert len(row["text"]) <= 1000
            assert row["text"] == " ".join(row["text"].split())
            assert not re.search(r"\w@\w+\.\w", row["text"]), row["package"]


def text(build: Any, package: str, body: str, **fields: Any) -> Any:
    paragraphs = tuple(q for q in map(build.normalised, body.split("\n\n")) if len(q) >= build.SHARED_PARAGRAPH)
    values = {"source": package, "section": "net"} | fields
    return build.Text(
        package=package, text=" ".join(body.split()), paragraphs=paragraphs, start=body[:200], **values
    )


def test_groups_join_sources_and_shared_paragraphs(build: Any) -> None:
    boilerplate = "This is part of one large suite of programs. " * 5
    texts = [
        text(build, "a", "alone"),
        text(build, "b", f"first\n\n{boilerplate}"),
        text(build, "c", f"second\n\n{boilerplate}"),
        text(build, "c-doc", "manual", source="c"),
        text(build, "d", "other"),
    ]
    group = build.grouped(texts)
    assert group["b"] == group["c"] == group["c-doc"]
    assert len({group["a"], group["b"], group["d"]}) == 3


def test_splits_are_stable_and_apart(build: Any) -> None:
    texts = [text(build, f"p{n}", f"package number {n} does a thing of its own called t{n}") for n in range(600)]
    splits, rest = build.split(texts)
    again, _ = build.split(texts[::-1])
    assert splits == again
    names = [row.package for part in (*splits.values(), rest) for row in part]
    assert len(names) == len(set(names))
    assert all(len(part) > 30 for part in splits.values())


def test_near_copies_are_dropped(build: Any) -> None:
    begin = "a server for mail that filters"
    held_out = [text(build, "held", f"{begin} and sorts what comes in by rules of its user")]
    near = text(build, "near", f"{begin} and sorts what comes in by rules of the admin")
    far = text(build, "far", f"{begin} and draws pictures of what a network of hosts looks like")
    assert build.without_near_copies([near, far], held_out) == [far]


def test_packing_depends_on_the_data_alone(build: Any, figures: dict[str, Any]) -> None:
    packed = (FOLDER / "test.jsonl.gz").read_bytes()
    assert packed[4:8] == b"\0\0\0\0"  # no time
    assert not packed[3] & 8  # no file name
    assert build.compressed(b"x") == build.compressed(b"x")


def test_labels_are_those_of_the_script(build: Any, rows: dict[str, list[dict[str, str]]]) -> None:
    assert sorted({row["label"] for row in rows["train"]}) == sorted(build.SECTIONS)
