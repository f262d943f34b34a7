"""The commands of the topic tagger's README, every one of them, in their order.

What is not the real thing: ``sudo`` runs without changing users (package manager and users are left alone), files
stand below a folder of the test's, the Pi is another folder and ``scp`` copies there, systemd is
``systemctl_stand_in.py``, and the bundle that ``edgescribe convert`` would take minutes for is a tiny one. The wheel,
the virtual environment, pip with its downloads, and the program are real.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

CHECKOUT = Path(__file__).parents[2]
SAMPLE = CHECKOUT / "samples/raspberry_pi/topic_tagger"
SYSTEM_PATHS = ("/opt/topic-tagger", "/srv/topic-tagger", "/etc/systemd/system", "/boot/firmware")


@pytest.fixture(scope="module")
def litert_bundle(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small bundle's student, written for LiteRT."""
    from edgescribe.converters.export.litert_flatbuffer import FlatbufferFile
    from edgescribe.converters.export.litert_graph import LiteRtGraph
    from edgescribe.converters.quantized_weights import FloatMatrix, QuantizedWeights
    from edgescribe.sdk.bundle import known_answers, read_bundle
    from edgescribe.sdk.bundle_writer import pending, write_bundle

    manifest = read_bundle(small_bundle).manifest
    vocabulary = msgspec.json.decode((small_bundle / "tokenizer.json").read_bytes())["model"]["vocab"]
    words = {"games": ("chess", "puzzle"), "net": ("network", "router", "packet"), "sound": ("audio", "music", "mixer")}
    table = np.zeros((len(vocabulary), len(manifest.labels)), np.float32)
    for column, label in enumerate(manifest.labels):
        table[[vocabulary[word] for word in words[label]], column] = 9.0
    identity = np.eye(len(manifest.labels), dtype=np.float32)
    weights = QuantizedWeights("fp32", {"head": FloatMatrix(identity, None)}, {"words": table}, {}, {}, {})
    file = FlatbufferFile("words")
    graph = LiteRtGraph(file, weights, manifest.tokenizer.max_tokens)
    pooled = graph.mean_pool(graph.embedding(graph.token_ids(), "words"), graph.token_mask())
    graph.output("logits", graph.linear(pooled, "head", "head"))
    graph.finish()

    (answer,) = known_answers(manifest.artifacts[0])
    ids = answer.feeds["input_ids"]
    expected = table[ids].mean(axis=1)
    change = msgspec.structs.replace
    artifact = manifest.artifacts[0]
    entry = change(artifact.known_answers[0], outputs={"logits": [float(x) for x in expected.ravel()]})
    path = "litert/words.tflite"
    artifact = change(
        artifact, runtime="litert", files=(pending(path),), buckets=(graph.tokens,), known_answers=(entry,)
    )
    out = tmp_path_factory.mktemp("litert") / "bundle"
    files: dict[str, Any] = {path: file.to_bytes(), "tokenizer.json": small_bundle / "tokenizer.json"}
    write_bundle(change(manifest, artifacts=(artifact,), quality={}), files, out)
    return out


@pytest.fixture
def shell(readme_shell: Callable[..., Any], litert_bundle: Path) -> Any:
    return readme_shell(SAMPLE, litert_bundle, SYSTEM_PATHS)


@pytest.mark.slow
def test_every_command_of_the_readme(shell: Any, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "demo", "tests", "*.egg-info", "__pycache__", "*.gz")
    shutil.copytree(CHECKOUT, checkout, ignore=ignored)
    shell.section("1.", checkout)
    assert {path.name.partition("-")[0] for path in shell.pi.glob("[!.]*")} == {"edgescribe", "bundle", "topic_tagger"}

    shell.section("2.")
    installed = subprocess.run(
        [shell.root / "opt/topic-tagger/venv/bin/pip", "freeze"], capture_output=True, text=True, check=True
    ).stdout
    assert "ai-edge-litert" in installed
    assert "torch" not in installed

    by_hand = shell.section("3.")
    filed = {path.relative_to(shell.pi / "try").as_posix() for path in (shell.pi / "try").rglob("*.txt")}
    assert filed == {"outbox/games/first.txt", "outbox/net/second.txt"}, by_hand

    journal = shell.section("4.")
    assert (shell.root / "srv/topic-tagger/outbox/sound/track.txt").exists(), journal
    assert "filed 'track.txt' as 'sound/track.txt'" in journal
    assert (shell.root / "boot/firmware/cmdline.txt").read_text() == "console=tty1 rootwait cgroup_enable=memory\n"

    new_bundle, end = shell.blocks("5.")
    shell.run(new_bundle, shell.pi)
    (shell.root / "srv/topic-tagger/inbox/late.txt").write_text("a router")
    shell.run("sleep 4", shell.pi)
    assert (shell.root / "srv/topic-tagger/outbox/net/late.txt").exists()
    shell.run(end, shell.pi)
    left = {path.name for folder in ("opt", "srv", "etc/systemd/system") for path in (shell.root / folder).iterdir()}
    assert left <= {"systemd"}


def test_the_readme_has_no_command_outside_its_sections(readme_blocks: Callable[..., list[str]]) -> None:
    text = (SAMPLE / "README.md").read_text(encoding="utf-8")
    in_sections = sum(len(readme_blocks(SAMPLE, f"{number}.")) for number in range(1, 6))
    assert len(re.findall(r"^```sh$", text, flags=re.M)) == in_sections


def test_named_options_exist() -> None:
    named = set(re.findall(r"`(--[a-z-]+)", (SAMPLE / "README.md").read_text(encoding="utf-8")))
    done = subprocess.run(
        [sys.executable, SAMPLE / "topic_tagger.py", "--help"], capture_output=True, text=True, check=True
    )
    assert named
    assert named <= set(re.findall(r"--[a-z-]+", done.stdout))


needs_analyze = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")


@needs_analyze
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    text = (SAMPLE / "topic-tagger.service").read_text()
    # it looks for the program and for the documentation
    text = text.replace("/opt/topic-tagger/venv/bin/python", sys.executable).replace("/opt/topic-tagger", str(SAMPLE))
    (tmp_path / "topic-tagger.service").write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "topic-tagger.service")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "topic-tagger.service" not in done.stderr


@needs_analyze
def test_systemd_calls_the_unit_safe() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(SAMPLE / "topic-tagger.service")],
        capture_output=True, text=True, check=False, env=os.environ | {"SYSTEMD_PAGER": "cat"},
    )  # fmt: skip
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze cannot judge a unit offline (before systemd 250)")
    assert done.returncode == 0, done.stdout
