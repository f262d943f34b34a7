"""Builds the summarising data set "Debian long description -> one-line synopsis" from apt's package lists.

Needs what ``samples/debian_topics/build_dataset.py`` needs, whose reading, grouping and writing it uses: Debian (or
anything with ``apt-get`` and the package ``debian-archive-keyring``) and Python 3.11. Root is not needed::

    python3 build_pairs.py --out synopses              # fetches the lists (two times 15 MB) into synopses/lists*
    python3 build_pairs.py --out synopses --ship .     # also writes the compressed files that ship with the sample

Writes ``train.jsonl``, ``validation.jsonl``, ``test.jsonl`` and ``more.jsonl`` (``{"text", "summary", "package"}`` a
line) and ``data_figures.json`` into ``--out``. ``--ship`` takes the first rows of training only, all of the other two.

What is a pair: the long description, white space evened out and cut between words at 1,200 characters, and the
synopsis, which does not stand in it. How no text, nor a near copy of it, comes to stand in two splits:

1. Descriptions whose first 200 letters and digits agree are one text; a package drawn by its name's hash keeps it.
2. Texts are grouped: those of one source package, and those that share a paragraph of 150 characters or more.
   A group lies in one split as a whole, drawn by the SHA-256 of the group's name. Large groups (over 20 texts: a
   template filled in many times, or one suite in many parts) train, so that none of them makes up a held-out split.
3. What remains similar (over half of the shorter text's five-word runs shared) is dropped from the split that
   trains: out of training against validation and test, out of validation against test.

``more.jsonl`` is for training alone: pairs that the rules above leave out (short texts, synopses that stand in the
text, up to ``ALIKE`` packages whose descriptions begin alike) and, by the same wider rules, packages that are new in
``--newer``, a later release. None of them is in a group with a held-out text, nor a near copy of one.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "debian_topics"))
import build_dataset as archive

MIN_WORDS = 20  # a shorter long description is hardly longer than its synopsis
MAX_CHARS = 1200
SUMMARY_WORDS = range(3, 21)
LARGE_GROUP = 20
MORE_MIN_WORDS, MORE_SUMMARY_WORDS, ALIKE = 8, range(2, 25), 3  # of more.jsonl
NEWER = "trixie"
#: Left out: rust and haskell, whose descriptions are to the most part one template, and what describes no program.
LEFT_OUT = {"rust", "haskell", "oldlibs", "debug", "metapackages"}
TEMPLATES = re.compile(r"transitional|dummy package|metapackage|meta-package", re.IGNORECASE)
TEST_PERMILLE, VALIDATION_PERMILLE = 35, 25
SHIPPED_TRAIN = 4000


@dataclass(frozen=True)
class Pair(archive.Text):
    """One description without its synopsis (``text``), and the synopsis (``summary``)."""

    summary: str


def evened(text: str) -> str:
    """White space evened out; mail addresses, people's now and then, taken out."""
    return archive.MAIL_ADDRESS.sub("(address)", " ".join(text.split()))


def cut(text: str) -> str:
    """At most MAX_CHARS characters, cut between words."""
    return text if len(text) <= MAX_CHARS else text[: MAX_CHARS + 1].rsplit(" ", 1)[0]


def drawn(name: str) -> int:
    """A number in 0..999 that depends on nothing but the name."""
    return int.from_bytes(hashlib.sha256(b"synopses " + name.encode()).digest()[:8], "big") % 1000


def make_pair(package: str, source: str, section: str, description: str, wide: bool = False) -> Pair | None:
    """The pair of one description (synopsis, newline, long description), or None where it is not fit to learn from.

    ``wide``: by the wider rules of ``more.jsonl``.
    """
    synopsis, _, body = description.partition("\n")
    summary = evened(synopsis).rstrip(".")
    parts = [" ".join(part.split()) for part in re.split(r"\n\.(?:\n|$)", body)]
    text = cut(evened(" ".join(parts)))
    if section in LEFT_OUT or source.startswith("haskell-") or TEMPLATES.search(summary):
        return None
    if len(text.split()) < (MORE_MIN_WORDS if wide else MIN_WORDS):
        return None
    if len(summary.split()) not in (MORE_SUMMARY_WORDS if wide else SUMMARY_WORDS):
        return None
    if not wide and f" {archive.normalised(summary)} " in f" {archive.normalised(text)} ":
        return None
    shared = tuple(p for p in map(archive.normalised, parts) if len(p) >= archive.SHARED_PARAGRAPH)
    start = archive.normalised(body)[:200]
    return Pair(package, source, section, text, shared, start, summary)


def read_pairs(lists: Path, wide: bool = False) -> list[Pair]:
    """All fitting pairs of the suite, one for every start of a description (``wide``: ALIKE), by package name."""
    packages = {
        f["Package"]: f
        for f in archive.stanzas(archive.only(lists, "*_main_binary-amd64_Packages*"))
        if "Package" in f
    }
    english = {
        f["Description-md5"]: f["Description-en"]
        for f in archive.stanzas(archive.only(lists, "*_main_i18n_Translation-en*"))
        if "Description-en" in f
    }
    by_start: dict[str, list[Pair]] = collections.defaultdict(list)
    for name in sorted(packages, key=lambda name: hashlib.sha256(name.encode()).digest()):
        fields = packages[name]
        description = english.get(fields.get("Description-md5", ""), "")
        section = fields.get("Section", "").rpartition("/")[2]
        pair = make_pair(name, fields.get("Source", name).split()[0], section, description, wide)
        if pair is not None and len(by_start[pair.start]) < (ALIKE if wide else 1):
            by_start[pair.start].append(pair)
    return sorted((pair for alike in by_start.values() for pair in alike), key=lambda pair: pair.package)


def split(pairs: list[Pair]) -> dict[str, list[Pair]]:
    """The three splits, each in an order drawn by the packages' names."""
    group = archive.grouped(pairs)
    sizes = collections.Counter(group[pair.package] for pair in pairs)
    splits: dict[str, list[Pair]] = {"train": [], "validation": [], "test": []}
    for pair in sorted(pairs, key=lambda pair: hashlib.sha256(b"order " + pair.package.encode()).digest()):
        name = group[pair.package]
        at = drawn(name) if sizes[name] <= LARGE_GROUP else 999
        held_out = "test" if at < TEST_PERMILLE else "validation"
        splits[held_out if at < TEST_PERMILLE + VALIDATION_PERMILLE else "train"].append(pair)
    splits["validation"] = apart(splits["validation"], splits["test"])
    splits["train"] = apart(splits["train"], splits["validation"] + splits["test"])
    return splits


def more_pairs(here: list[Pair], newer: list[Pair], splits: dict[str, list[Pair]]) -> list[Pair]:
    """What trains beside the split that trains, in an order drawn by the packages' names.

    ``here`` and ``newer``: the suite's and the later release's pairs by the wider rules; of the later one's, packages
    that are new in it.
    """
    strict = [pair for pairs in splits.values() for pair in pairs]
    held_out = splits["validation"] + splits["test"]
    known = {pair.package for pair in strict}
    others = [pair for pair in here if pair.package not in known]
    known |= {pair.package for pair in here}
    others += [pair for pair in newer if pair.package not in known]
    group = archive.grouped(strict + others)
    closed = {group[pair.package] for pair in held_out}
    seen = {(archive.normalised(pair.text), archive.normalised(pair.summary)) for pair in strict}
    kept = []
    for pair in sorted(others, key=lambda pair: hashlib.sha256(b"order " + pair.package.encode()).digest()):
        key = (archive.normalised(pair.text), archive.normalised(pair.summary))
        if group[pair.package] not in closed and key not in seen:
            seen.add(key)
            kept.append(pair)
    return apart(kept, held_out)


def apart(pairs: list[Pair], held_out: list[Pair]) -> list[Pair]:
    """``pairs`` without near copies of ``held_out``."""
    kept = {text.package for text in archive.without_near_copies(list(pairs), list(held_out))}
    return [pair for pair in pairs if pair.package in kept]


def json_lines(pairs: list[Pair]) -> bytes:
    """One JSON object a line, UTF-8."""
    rows = [{"text": pair.text, "summary": pair.summary, "package": pair.package} for pair in pairs]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def main() -> None:
    """Reads the command line, builds, prints the figures."""
    parser = argparse.ArgumentParser(description="Builds the summarising data set out of Debian's descriptions.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the full files")
    parser.add_argument("--ship", type=Path, help="folder for the compressed files of the sample")
    parser.add_argument("--lists", type=Path, help="use lists that are here already; fetches nothing")
    parser.add_argument("--mirror", help="Debian's archive; by default where the system's apt fetches from")
    parser.add_argument("--suite", default=archive.SUITE)
    parser.add_argument("--newer", default=NEWER, help="the release whose new packages go into more.jsonl")
    parser.add_argument("--newer-lists", type=Path, help="its lists, where they are here already")
    options = parser.parse_args()

    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    lists: Path = (options.lists or out / "lists").resolve()
    if options.lists is None:
        archive.fetch_lists(lists, options.mirror or archive.system_mirror(), options.suite)

    newer: Path = (options.newer_lists or out / "newer" / "lists").resolve()
    if options.newer_lists is None:
        archive.fetch_lists(newer, options.mirror or archive.system_mirror(), options.newer)

    splits = split(read_pairs(lists))
    splits["more"] = more_pairs(read_pairs(lists, wide=True), read_pairs(newer, wide=True), splits)
    files = {name: json_lines(pairs) for name, pairs in splits.items()}
    shipped = {name: data for name, data in files.items() if name != "more"}
    shipped["train"] = json_lines(splits["train"][:SHIPPED_TRAIN])
    figures = {
        "release": archive.release(lists),
        "newer_release": archive.release(newer),
        "rows": {name: len(pairs) for name, pairs in splits.items()},
        "shipped_rows": {name: len(data.splitlines()) for name, data in shipped.items()},
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        "shipped_sha256": {name: hashlib.sha256(data).hexdigest() for name, data in shipped.items()},
    }
    told = (json.dumps(figures, indent=2) + "\n").encode()
    for name, data in files.items():
        archive.write(out / f"{name}.jsonl", data)
        if options.ship and name in shipped:
            archive.write(options.ship / f"{name}.jsonl.gz", archive.compressed(shipped[name]))
    archive.write(out / "data_figures.json", told)
    if options.ship:
        archive.write(options.ship / "data_figures.json", told)
    sys.stdout.write(told.decode())


if __name__ == "__main__":
    main()
