"""Builds the topic data set "Debian package description -> archive section" from apt's package lists.

Needs Debian (or anything with ``apt-get`` and the package ``debian-archive-keyring``), Python 3.11 and nothing
else; root is not needed. The archive's address is that of the system's apt sources; nothing of apt's is changed::

    python3 build_dataset.py --out topics                # fetches the lists (15 MB) into topics/lists
    python3 build_dataset.py --out topics --ship .       # also writes the compressed files that ship with the sample

Writes ``train.jsonl``, ``validation.jsonl`` and ``test.jsonl`` (``{"text", "label", "package"}`` a line),
``unlabelled.jsonl`` (``{"text", "package"}``, for distillation) and ``figures.json`` into ``--out``.

How no text, nor a near copy of it, comes to stand in two splits:

1. Descriptions whose first 200 letters and digits agree are one text; the first package by name keeps it.
2. Texts are grouped: those of one source package, and those that share a paragraph of 150 characters or more.
   A group lies in one split as a whole, drawn by the SHA-256 of the group's name, so that a rebuild from a later
   point release moves few texts.
3. What remains similar (over half of the shorter text's five-word runs shared) is dropped from the split that
   trains: out of training and unlabelled text against validation and test, out of validation against test.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

#: The topics. Left out: sections that say how a package is built or used and not what it is about (libs, libdevel,
#: doc, debug, oldlibs, utils, misc, metapackages, localization, ...) and those with under 250 fitting texts, but for
#: mail and math; haskell, whose descriptions are to the most part one template; rust, lisp and ocaml for size.
SECTIONS = ("admin", "devel", "fonts", "games", "gnu-r", "golang", "graphics", "java", "javascript", "mail",
            "math", "net", "perl", "php", "python", "ruby", "science", "sound", "text", "x11")  # fmt: skip
SUITE = "bookworm"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
MIN_WORDS = 25  # shorter long descriptions seldom say what the package is about
MAX_CHARS = 1000  # over twice what the student reads (128 tokens)
PER_SECTION = 650  # evens out sections: python alone would bring 2,600
TEST_PERCENT, VALIDATION_PERCENT = 17, 10
SHARED_PARAGRAPH = 150
MAIL_ADDRESS = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")  # people's, now and then; no topic hangs on one
RUN = 5  # words in a run, for near copies


@dataclass(frozen=True)
class Text:
    """One description: the one-line synopsis, then the long description, white space evened out."""

    package: str
    source: str
    section: str
    text: str
    paragraphs: tuple[str, ...]
    start: str


def normalised(text: str) -> str:
    """Lower case, letters and digits only, single spaces."""
    return re.sub(r"\W+", " ", text.lower()).strip()


def system_mirror() -> str:
    """The address of Debian's archive in the system's apt sources; ends the program if there is none."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    mirrors = [uri.rstrip("/") for uri in listed if uri.rstrip("/").endswith("/debian")]
    if not mirrors:
        sys.exit("the system's apt sources name no archive of Debian; name one with --mirror")
    return mirrors[0]


def fetch_lists(folder: Path, mirror: str, suite: str) -> None:
    """Fetches the suite's package list and English descriptions into ``folder``, checked by the archive's key.

    A configuration of its own is laid over the system's: container images switch the descriptions off
    (``Acquire::Languages "none"``), and a list has to be cleared before it can be set anew.
    """
    (folder / "partial").mkdir(parents=True, exist_ok=True)
    sources, settings = folder.parent / "sources.list", folder.parent / "apt.conf"
    sources.write_text(f"deb [arch=amd64 signed-by={KEYRING}] {mirror} {suite} main\n")
    settings.write_text(
        "#clear Acquire::Languages;\n"
        'Acquire::Languages { "en"; };\n'
        "#clear APT::Update::Post-Invoke;\n"
        "#clear APT::Update::Post-Invoke-Success;\n"
        'Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";\n'
        f'Dir::State::Lists "{folder}";\n'
        f'Dir::Cache "{folder.parent / "cache"}";\n'
        f'Dir::Etc::SourceList "{sources}";\n'
        'Dir::Etc::SourceParts "/dev/null";\n'
    )
    (folder.parent / "cache/archives/partial").mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "-q", "-c", str(settings), "update"], check=True, stdout=sys.stderr)


def stanzas(path: Path) -> Iterator[dict[str, str]]:
    """Reads deb822 paragraphs; apt decompresses, whatever it chose to keep the list as."""
    done = subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", str(path)], capture_output=True, check=True)
    for block in done.stdout.decode("utf-8").split("\n\n"):
        fields: dict[str, str] = {}
        key = ""
        for line in block.split("\n"):
            if line.startswith(" ") and key:
                fields[key] += "\n" + line[1:]
            elif ":" in line:
                key, value = line.split(":", 1)
                fields[key] = value.strip()
        if fields:
            yield fields


def only(folder: Path, pattern: str) -> Path:
    """The one file in ``folder`` that matches; ends the program with a message if it is not exactly one."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        sys.exit(f"{folder}: {len(found)} files match {pattern}, one is needed; empty the folder and run again")
    return found[0]


def read_texts(lists: Path) -> list[Text]:
    """All distinct English descriptions of the suite, by package name."""
    packages = {f["Package"]: f for f in stanzas(only(lists, "*_main_binary-amd64_Packages*")) if "Package" in f}
    english: dict[str, str] = {}
    for fields in stanzas(only(lists, "*_main_i18n_Translation-en*")):
        if "Description-en" in fields:
            english[fields["Description-md5"]] = fields["Description-en"]
    texts, seen = [], set()
    for name in sorted(packages):
        fields = packages[name]
        synopsis, _, body = english.get(fields.get("Description-md5", ""), "").partition("\n")
        start = normalised(body)[:200]
        if len(body.split()) < MIN_WORDS or start in seen:
            continue
        seen.add(start)
        parts = [" ".join(p.split()) for p in re.split(r"\n\.(?:\n|$)", body)]
        text = " ".join(f"{synopsis.strip().rstrip('.')}. {' '.join(parts)}".split())
        text = MAIL_ADDRESS.sub("(address)", text)
        source = fields.get("Source", name).split()[0]
        shared = tuple(q for q in map(normalised, parts) if len(q) >= SHARED_PARAGRAPH)
        texts.append(Text(name, source, fields.get("Section", ""), trimmed(text), shared, start))
    return texts


def trimmed(text: str) -> str:
    """At most MAX_CHARS characters, cut between words."""
    return text if len(text) <= MAX_CHARS else text[: MAX_CHARS + 1].rsplit(" ", 1)[0]


def grouped(texts: Iterable[Text]) -> dict[str, str]:
    """Package -> group. Union-find over source packages, joined by shared paragraphs; smallest name leads."""
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    owner: dict[str, str] = {}
    texts = list(texts)
    for text in texts:
        for paragraph in text.paragraphs:
            one, other = sorted((find(text.source), find(owner.setdefault(paragraph, text.source))))
            parent[other] = one
    return {text.package: find(text.source) for text in texts}


def percentile(name: str) -> int:
    """A number in 0..99 that depends on nothing but the name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 100


def runs(text: str) -> set[tuple[str, ...]]:
    """The text's five-word runs."""
    words = normalised(text).split()
    return {tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)}


def without_near_copies(texts: list[Text], held_out: list[Text]) -> list[Text]:
    """``texts`` without those that share over half of the shorter one's runs with a text of ``held_out``."""
    index: dict[tuple[str, ...], list[int]] = {}
    sizes = []
    for number, text in enumerate(held_out):
        found = runs(text.text)
        sizes.append(len(found))
        for run in found:
            index.setdefault(run, []).append(number)
    kept = []
    for text in texts:
        found = runs(text.text)
        shared = collections.Counter(number for run in found for number in index.get(run, ()))
        if not any(2 * count > min(sizes[number], len(found)) for number, count in shared.items()):
            kept.append(text)
    return kept


def split(texts: list[Text]) -> tuple[dict[str, list[Text]], list[Text]]:
    """The three labelled splits and the unlabelled rest that touches neither validation nor test."""
    group = grouped(texts)
    chosen: list[Text] = []
    for section in SECTIONS:
        mine = [t for t in texts if t.section == section]
        chosen += sorted(mine, key=lambda t: hashlib.sha256(t.package.encode()).digest())[:PER_SECTION]
    chosen.sort(key=lambda t: hashlib.sha256(b"order " + t.package.encode()).digest())

    def name(text: Text) -> str:
        at = percentile(group[text.package])
        return "test" if at < TEST_PERCENT else "validation" if at < TEST_PERCENT + VALIDATION_PERCENT else "train"

    splits: dict[str, list[Text]] = {"train": [], "validation": [], "test": []}
    for text in chosen:
        splits[name(text)].append(text)
    splits["validation"] = without_near_copies(splits["validation"], splits["test"])
    held_out = splits["validation"] + splits["test"]
    splits["train"] = without_near_copies(splits["train"], held_out)
    taken = {t.package for t in chosen}
    rest = [t for t in texts if t.package not in taken and name(t) == "train"]
    return splits, without_near_copies(rest, held_out)


def json_lines(texts: Iterable[Text], labelled: bool = True) -> bytes:
    """One JSON object a line, UTF-8."""
    lines = []
    for t in texts:
        row = {"text": t.text} | ({"label": t.section} if labelled else {}) | {"package": t.package}
        lines.append(json.dumps(row, ensure_ascii=False))
    return ("\n".join(lines) + "\n").encode()


def compressed(data: bytes) -> bytes:
    """gzip that depends on the data alone: no time, no file name."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as file:
        file.write(data)
    return buffer.getvalue()


def write(path: Path, data: bytes) -> None:
    """Writes beside the target and renames, so that no half file is ever seen."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name + ".", delete=False) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).chmod(0o644)
    Path(file.name).rename(path)


def release(lists: Path) -> dict[str, str]:
    """The archive's own words about which state of it was read."""
    text = only(lists, "*_InRelease").read_text(encoding="utf-8", errors="replace")
    return {k.lower(): m[1] for k in ("Codename", "Version", "Date") if (m := re.search(rf"^{k}: (.*)$", text, re.M))}


def main() -> None:
    """Reads the command line, builds, prints the figures."""
    parser = argparse.ArgumentParser(description="Builds the topic data set out of Debian's package descriptions.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the full files")
    parser.add_argument("--ship", type=Path, help="folder for the compressed files of the sample")
    parser.add_argument("--lists", type=Path, help="use lists that are here already; fetches nothing")
    parser.add_argument("--mirror", help="Debian's archive; by default where the system's apt fetches from")
    parser.add_argument("--suite", default=SUITE)
    options = parser.parse_args()

    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    lists: Path = (options.lists or out / "lists").resolve()
    if options.lists is None:
        fetch_lists(lists, options.mirror or system_mirror(), options.suite)

    splits, unlabelled = split(read_texts(lists))
    files = {name: json_lines(rows) for name, rows in splits.items()}
    for name, data in files.items():
        write(out / f"{name}.jsonl", data)
    write(out / "unlabelled.jsonl", json_lines(unlabelled, labelled=False))
    figures = {
        "release": release(lists),
        "rows": {name: len(rows) for name, rows in splits.items()} | {"unlabelled": len(unlabelled)},
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        "rows_per_label": {
            section: {name: sum(t.section == section for t in rows) for name, rows in splits.items()}
            for section in SECTIONS
        },
    }
    if options.ship:
        for name, data in files.items():
            write(options.ship / f"{name}.jsonl.gz", compressed(data))
        write(options.ship / "figures.json", (json.dumps(figures, indent=2) + "\n").encode())
    write(out / "figures.json", (json.dumps(figures, indent=2) + "\n").encode())
    json.dump(figures, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
