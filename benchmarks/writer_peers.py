"""The peers of writers: the unpruned student in llama.cpp, ONNX Runtime GenAI and OpenVINO GenAI."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgescribe.converters.student import Student
from edgescribe.sdk.console import note
from peer_environment import GENAI_REQUIREMENTS, LLAMA_REQUIREMENTS, genai_python, llama_python
from released_student import GGUF, write_gguf
from writer_contenders import Bits, LeftOut, WriterContender, brief, takes_part

HERE = Path(__file__).parent
MAKERS = ("llama_quantize.py", "genai_convert.py", "released_student.py", GENAI_REQUIREMENTS.name,
          LLAMA_REQUIREMENTS.name)  # fmt: skip


@dataclass(frozen=True)
class Peer:
    """A peer to be made: its line's name, engine and bits; ``form`` is what its tool calls the result."""

    name: str
    engine: str
    bits: Bits
    form: str


PEERS = (
    Peer("llama.cpp Q8_0", "llama.cpp", 8, "Q8_0"),
    Peer("llama.cpp Q4_0", "llama.cpp", 4, "Q4_0"),
    Peer("onnxruntime-genai int4", "onnxruntime-genai", 4, "onnxruntime-int4"),
    Peer("openvino-genai int8", "openvino-genai", 8, "openvino-int8"),
    Peer("openvino-genai int4", "openvino-genai", 4, "openvino-int4"),
)


def writer_peers(
    student: Student, checkpoint: Path, like: Path, folder: Path, only: Sequence[str] | None = None
) -> list[WriterContender | LeftOut]:
    """The peers, their environments and models made in ``folder`` where they are not there yet.

    Args:
        student: the unpruned one.
        checkpoint: its folder.
        like: a GGUF file of a student of the same shape and tokenizer; ``released_student.py`` has it.
        only: parts of names; peers whose name holds none are not made. None: all.
    """
    found: list[WriterContender | LeftOut] = []
    interpreters: dict[str, Path | str] = {}
    for peer in PEERS:
        if not takes_part(peer.name, only):
            continue
        environment = "llama" if peer.engine == "llama.cpp" else "genai"
        if environment not in interpreters:
            interpreters[environment] = _interpreter(environment, folder)
        python = interpreters[environment]
        if isinstance(python, str):
            found.append(LeftOut(peer.name, python))
            continue
        try:
            model = _model(peer, python, student, checkpoint, like, folder / "writers" / key_of(student))
        except (RuntimeError, OSError) as error:
            found.append(LeftOut(peer.name, f"its model could not be made: {brief(error)}"))
            continue
        found.append(_contender(peer, python, model, folder))
    return found


def _interpreter(environment: str, folder: Path) -> Path | str:
    """The environment's Python, or why there is none."""
    make: dict[str, Callable[[Path], Path]] = {"llama": llama_python, "genai": genai_python}
    wait = "some ten minutes: it is compiled" if environment == "llama" else "about 1.7 GB"
    if not (folder / environment / "made-from.txt").is_file():
        note(f"installing {environment} in {folder.name} (once, {wait})")
    try:
        return make[environment](folder / environment)
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        return f"its packages could not be installed: {brief(error)}"


def key_of(student: Student) -> str:
    """A name for all that goes into the peers' models."""
    digest = hashlib.sha256(student.sha256.encode())
    for name in MAKERS:
        digest.update((HERE / name).read_bytes())
    return digest.hexdigest()[:16]


def _model(peer: Peer, python: Path, student: Student, checkpoint: Path, like: Path, folder: Path) -> Path:
    """The peer's model, made whole or not at all."""
    kept = folder / peer.form
    if kept.is_dir():
        return kept
    note(f"making the model of {peer.name} (once)")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        draft = Path(scratch, "model")
        draft.mkdir()
        if peer.engine == "llama.cpp":
            plain = Path(scratch, "float.gguf")
            write_gguf(student, like, plain)
            _step([str(python), "llama_quantize.py", str(plain), peer.form, str(draft / f"{peer.form}.gguf")])
        else:
            _step([str(python), "genai_convert.py", peer.form, str(checkpoint.resolve()), str(draft)])
        shutil.move(draft, kept)
    return kept


def _step(command: list[str]) -> None:
    """Run one of the makers; what it prints is the error's text when it fails."""
    settings = os.environ | {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1",
                             "PYTHONWARNINGS": "ignore"}  # fmt: skip
    done = subprocess.run(
        command, cwd=HERE, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        print(done.stdout[-3000:], file=sys.stderr)
        raise RuntimeError(f"{Path(command[1]).name} failed with status {done.returncode}: {brief(done.stdout)}")


def _contender(peer: Peer, python: Path, model: Path, folder: Path) -> WriterContender:
    process: dict[str, object] = {"kind": peer.engine, "path": str(model), "cache": None}
    files = [path for path in sorted(model.iterdir()) if path.name in ("model.onnx", "model.onnx.data")]
    if peer.engine == "llama.cpp":
        files = [model / f"{peer.form}.gguf"]
        process["path"] = str(files[0])
    elif peer.engine == "openvino-genai":
        files = [model / "openvino_model.xml", model / "openvino_model.bin"]
        process["cache"] = str(folder / "cache" / f"{model.parent.name}-{peer.form}")
    return WriterContender(peer.name, "peer", peer.engine, peer.bits, python, process, files)


def gguf_beside(checkpoint: Path) -> Path:
    """The GGUF file that lies beside the released student's checkpoint."""
    return checkpoint.parent / GGUF
