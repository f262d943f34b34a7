"""The shipped summarising data is what its page says, and the rules that made it hold."""

from __future__ import annotations

import collections
import gzip
import hashlib
import json
import re
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "samples/debian_synopses"
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def build() -> Any:
    sys.path.insert(0, str(FOLDER))
    import build_pairs

    return build_pairs


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict[str, str]]]:
    return {
        split: [json.loads(line) for line in gzip.open(FOLDER / f"{split}.jsonl.gz", "rt", encoding="utf-8")]
        for split in SPLITS
    }


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return json.loads((FOLDER / "data_figures.json").read_text())


def test_figures_are_those_of_the_files(rows: dict[str, list[dict[str, str]]], figures: dict[str, Any]) -> None:
    for split in SPLITS:
        unpacked = gzip.decompress((FOLDER / f"{split}.jsonl.gz").read_bytes())
        assert hashlib.sha256(unpacked).hexdigest() == figures["shipped_sha256"][split]
        assert len(rows[split]) == figures["shipped_rows"][split]
        assert figures["shipped_rows"][split] <= figures["rows"][split]
    for split in ("validation", "test"):
        assert figures["shipped_sha256"][split] == figures["sha256"][split]


def test_provenance_names_the_same_figures(figures: dict[str, Any]) -> None:
    page = (FOLDER / "PROVENANCE.md").read_text()
    for count in (*figures["rows"].values(), *figures["shipped_rows"].values(), sum(figures["rows"].values())):
        assert f"{count:,}" in page
    for release in ("release", "newer_release"):
        assert figures[release]["version"] in page


def test_no_text_nor_package_stands_in_two_splits(rows: dict[str, list[dict[str, str]]]) -> None:
    texts: dict[str, str] = {}
    packages: dict[str, str] = {}
    for split in SPLITS:
        for row in rows[split]:
            key = re.sub(r"\W+", " ", row["text"].lower())
            assert key not in texts, f"{row['package']} ({split}) has the text of {texts[key]}"
            texts[key] = f"{row['package']} ({split})"
            assert packages.setdefault(row["package"], split) == split


@pytest.mark.parametrize(("one", "other"), [*combinations(SPLITS, 2)])
def test_no_near_copy_stands_in_two_splits(
    build: Any, rows: dict[str, list[dict[str, str]]], one: str, other: str
) -> None:
    index: dict[tuple[str, ...], list[int]] = collections.defaultdict(list)
    held_out = [build.archive.runs(row["text"]) for row in rows[other]]
    for number, found in enumerate(held_out):
        for run in found:
            index[run].append(number)
    for row in rows[one]:
        found = build.archive.runs(row["text"])
        shared = collections.Counter(number for run in found for number in index.get(run, ()))
        for number, count in shared.items():
            copied = rows[other][number]["package"]
            assert 2 * count <= min(len(held_out[number]), len(found)), (row["package"], copied)


def test_pairs_are_clean_and_the_synopsis_does_not_stand_in_its_text(
    build: Any, rows: dict[str, list[dict[str, str]]]
) -> None:
    for split in SPLITS:
        for row in rows[split]:
            assert set(row) == {"text", "summary", "package"}
            assert len(row["text"].split()) >= build.MIN_WORDS
            assert len(row["text"]) <= 1200
            assert 3 <= len(row["summary"].split()) <= 20
            for field in ("text", "summary"):
                assert row[field] == " ".join(row[field].split())
                assert not re.search(r"\w@\w+\.\w", row[field]), row["package"]
            text, summary = build.archive.normalised(row["text"]), build.archive.normalised(row["summary"])
            assert f" {summary} " not in f" {text} ", row["package"]


BODY = (
    "Postcards are read from a folder, sorted by the town they were sent from, and shown one after the other.\n.\n"
    "A line below each says when it came, and from whom."
)


def test_a_pair_is_made_of_synopsis_and_body(build: Any) -> None:
    pair = build.make_pair("postcards", "postcards", "graphics", f"viewer for picture postcards.\n{BODY}")
    assert pair.summary == "viewer for picture postcards"
    assert pair.text == " ".join(BODY.replace("\n.\n", " ").split())
    asked = build.make_pair("p", "p", "mail", f"viewer for postcards\n{BODY} Write to someone@example.org about it.")
    assert "(address)" in asked.text
    assert "@" not in asked.text


@pytest.mark.parametrize(
    ("section", "synopsis", "body"),
    [
        ("graphics", "sorted by the town", BODY),  # stands in the text
        ("graphics", "viewer for picture postcards", "Shows postcards."),
        ("graphics", "postcards", BODY),
        ("graphics", "transitional dummy package for postcards", BODY),
        ("rust", "viewer for picture postcards", BODY),
    ],
)
def test_what_is_not_fit_is_left_out(build: Any, section: str, synopsis: str, body: str) -> None:
    assert build.make_pair("postcards", "postcards", section, f"{synopsis}\n{body}") is None


def test_long_texts_are_cut_between_words(build: Any) -> None:
    assert build.cut("word " * 600).endswith("word ".strip())
    assert len(build.cut("word " * 600)) <= build.MAX_CHARS
    assert build.cut("short text") == "short text"


def pair(build: Any, package: str, text: str, source: str) -> Any:
    return build.Pair(package, source, "net", text, (), text[:200], f"summary of {package}")


def test_splits_are_stable_keep_sources_whole_and_large_groups_train(build: Any) -> None:
    pairs = [
        pair(build, f"p{n}-{part}", f"program t{n} part u{part} does v{n} and w{n} of x{n} for {part}{n}", f"p{n}")
        for n in range(400)
        for part in "ab"
    ]
    large = [pair(build, f"suite-{n}", f"s{n} t{n} u{n} v{n} w{n} x{n}", "suite") for n in range(25)]
    splits = build.split(pairs + large)
    assert build.split((pairs + large)[::-1]) == splits
    by_source: dict[str, set[str]] = collections.defaultdict(set)
    for name, found in splits.items():
        assert found
        for one in found:
            by_source[one.source].add(name)
    assert all(len(names) == 1 for names in by_source.values())
    assert by_source["suite"] == {"train"}


def test_near_copies_are_dropped(build: Any) -> None:
    begin = "a server for mail that filters"
    held_out = [pair(build, "held", f"{begin} and sorts what comes in by rules of its user", "held")]
    near = pair(build, "near", f"{begin} and sorts what comes in by rules of the admin", "near")
    far = pair(build, "far", f"{begin} and draws pictures of what a network of hosts looks like", "far")
    assert build.apart([near, far], held_out) == [far]


def test_wider_rules_take_what_the_others_leave_out(build: Any) -> None:
    short = "Shows postcards in a row, one by one."
    for synopsis, body in (("sorted by the town", BODY), ("viewer for postcards", short)):
        assert build.make_pair("postcards", "postcards", "graphics", f"{synopsis}\n{body}") is None
        assert build.make_pair("postcards", "postcards", "graphics", f"{synopsis}\n{body}", wide=True) is not None
    for section, synopsis in (("rust", "viewer for postcards"), ("graphics", "transitional dummy package")):
        assert build.make_pair("postcards", "postcards", section, f"{synopsis}\n{BODY}", wide=True) is None


def test_what_only_trains_is_apart_from_what_is_held_out(build: Any) -> None:
    begin = "a server for mail that filters"
    held = pair(build, "held", f"{begin} and sorts what comes in by rules of its user", "mailer")
    trains = pair(build, "trains", "draws the weather of the week as seen from one town", "weather")
    splits = {"train": [trains], "validation": [], "test": [held]}
    sibling = pair(build, "sibling", "small things around letters", "mailer")
    near = pair(build, "near", f"{begin} and sorts what comes in by rules of the admin", "near")
    again = pair(build, "again", trains.text, "again")
    again = build.Pair(**{**again.__dict__, "summary": trains.summary})
    far = pair(build, "far", "plays a game of cards against up to three others", "cards")
    renewed = pair(build, "held", "an entirely new text of the same package", "mailer")
    new = pair(build, "new", "counts birds that come to a garden", "birds")
    assert build.more_pairs([held, sibling, near, again, far], [renewed, new], splits) == build.more_pairs(
        [far, again, near, sibling, held], [new, renewed], splits
    )
    found = build.more_pairs([held, sibling, near, again, far], [renewed, new], splits)
    assert {one.package for one in found} == {"far", "new"}
