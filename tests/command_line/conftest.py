"""Ways to call the command line, in this process and as one of its own, and files that commands are called with."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from edgescribe.__main__ import run


@pytest.fixture(scope="session")
def places(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What stands for the names in braces."""
    tmp = tmp_path_factory.mktemp("places")
    rows = [("a chess puzzle", "games"), ("the network router", "net"), ("audio music", "sound")]
    (tmp / "texts.jsonl").write_text("".join(json.dumps({"text": t, "label": n}) + "\n" for t, n in rows))
    (tmp / "lines.txt").write_text("audio music\n\nchess\n")
    (tmp / "bad_rows.jsonl").write_text('{"words": 1}\n')
    (tmp / "foreign.jsonl").write_text('{"text": "a soup", "label": "cooking"}\n')
    (tmp / "binary.bin").write_bytes(b"\x80\x02\xff\xfe")
    shutil.copytree(small_bundle, tmp / "damaged")
    artifact = tmp / "damaged" / "onnxruntime" / "words.onnx"
    content = bytearray(artifact.read_bytes())
    content[100] ^= 1
    artifact.write_bytes(content)
    catalogue = Path(importlib.util.find_spec("edgescribe.device_profiles.catalogue").submodule_search_locations[0])  # type: ignore[union-attr,index]
    profile = (catalogue / "raspberry-pi-5.toml").read_text()
    (tmp / "profile.toml").write_text(profile)
    (tmp / "tight.toml").write_text(re.sub(r"(?m)^p90_ms = .*$", "p90_ms = 1e-6", profile))
    without = re.sub(r"(?ms)^\[budgets\.classify\].*?(?=^\[)", "", profile)
    (tmp / "without.toml").write_text(without)
    return {
        "bundle": str(small_bundle),
        "texts": str(tmp / "texts.jsonl"),
        "lines": str(tmp / "lines.txt"),
        "bad_rows": str(tmp / "bad_rows.jsonl"),
        "binary": str(tmp / "binary.bin"),
        "foreign_texts": str(tmp / "foreign.jsonl"),
        "missing": str(tmp / "missing"),
        "damaged": str(tmp / "damaged"),
        "profile": str(tmp / "profile.toml"),
        "tight_profile": str(tmp / "tight.toml"),
        "profile_without_budget": str(tmp / "without.toml"),
        "tmp": str(tmp),
    }


@pytest.fixture(scope="session")
def workbench_places(
    places: dict[str, str], topic_files: Any, easy_profile: Path, tight_profile: Path
) -> dict[str, str]:
    """``places``, and a student with its data."""
    from edgescribe import read_recipe, recover_checkpoint

    tmp = Path(places["tmp"])
    (tmp / "short.toml").write_text("[training]\nepochs = 1\n")
    (tmp / "bad.toml").write_text("[training]\nepoch = 1\n")
    recover_checkpoint(
        topic_files.student,
        teacher=topic_files.student,
        task="classify",
        train=topic_files.train,
        recipe=read_recipe("round"),
        out=tmp / "rounded",
    )
    return places | {
        **{name: str(path) for name, path in topic_files._asdict().items()},
        "easy_profile": str(easy_profile),
        "tight_profile": str(tight_profile),
        "recipe": str(tmp / "short.toml"),
        "bad_recipe": str(tmp / "bad.toml"),
        "recovered": str(tmp / "rounded"),
    }


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def call(
    places: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ended]:
    """Run the command line in this process."""

    def call(arguments: Sequence[str], stdin: str | None = None, places: dict[str, str] = places) -> Ended:
        raw = io.BytesIO((stdin or "").encode())
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(raw, encoding="utf-8"))
        code = run([argument.format(**places) for argument in arguments])
        out, err = capsys.readouterr()
        return Ended(code, out, err)

    return call


@pytest.fixture(scope="session")
def process() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in a process of its own, without a terminal."""

    def process(arguments: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "edgescribe", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)

    return process
