"""A bundle: a folder with ``bundle.json``, artifacts and tokenizer, read only after everything in it was checked.

:func:`read_bundle` checks, in this order: the manifest's own hash (``bundle.json.sha256``), its schema version, its
types, that its parts agree, then every file's place, size and SHA-256, and that the tokenizer can be read. Nothing
in a bundle is executed or unpickled. Bundles are written by :mod:`edgescribe.sdk.bundle_writer`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..errors import BundleError
from ..runtimes.contract import KnownAnswer
from ..runtimes.decoder_contract import DecoderAnswer
from ..runtimes.encoder_decoder_contract import SourceAnswer
from .bundle_files import (
    MANIFEST_NAME,
    REMEDY,
    SEAL_NAME,
    read_limited,
    read_verified,
    verify_file,
)
from .manifest import SCHEMA_VERSION, ArtifactEntry, FileEntry, Manifest, SummarizingEntry, WritingEntry
from .manifest_checks import SUFFIXES, check_manifest
from .sha256 import sha256
from .tokenizer import Tokenizer

MANIFEST_LIMIT = 16 << 20
"""Largest ``bundle.json`` in bytes; known answers are what fills it."""

TOKENIZER_LIMIT = 64 << 20
"""Largest tokenizer file in bytes; those of 250,000 tokens have about 17 million."""

MIB = 1 << 20


class _Task(msgspec.Struct):
    """Just enough of a manifest to know what its student does."""

    task: str = ""


class _Version(msgspec.Struct):
    """Just enough of any manifest to tell whether it can be read further."""

    schema_version: Any = None


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files were checked.

    Attributes:
        folder: where it lies, links resolved.
        manifest: the content of ``bundle.json``.
        tokenizer: its tokenizer with the student's limits; that of a student which writes does not cut texts.
    """

    folder: Path
    manifest: Manifest
    tokenizer: Tokenizer

    @property
    def disk_mib(self) -> float:
        """Size of all its files in MiB, the manifest not counted."""
        entries = [file for artifact in self.manifest.artifacts for file in artifact.files]
        return sum(entry.bytes for entry in [self.manifest.tokenizer.file, *entries]) / MIB

    def artifact_mib(self, artifact: ArtifactEntry) -> float:
        """Size in MiB of what one artifact needs on the device: its files and the tokenizer."""
        return sum(entry.bytes for entry in [self.manifest.tokenizer.file, *artifact.files]) / MIB

    def artifact_path(self, artifact: ArtifactEntry) -> Path:
        """The file of the artifact that its runtime opens."""
        return self.folder / artifact.files[0].path

    def artifacts(self, runtime: str | None = None, precision: str | None = None) -> tuple[ArtifactEntry, ...]:
        """The artifacts for a runtime, in a precision, or both, in the manifest's order (of preference).

        Raises:
            BundleError: there is none; the message lists what there is.
        """
        found = tuple(
            artifact
            for artifact in self.manifest.artifacts
            if runtime in (None, artifact.runtime) and precision in (None, artifact.precision)
        )
        if not found:
            wanted = " in ".join(word for word in (runtime, precision) if word)
            there = ", ".join(f"{artifact.runtime} in {artifact.precision}" for artifact in self.manifest.artifacts)
            raise BundleError(
                f"{self.folder}: the bundle has no artifact for {wanted}; it has {there}. Ask for one of these, or "
                "convert the student again for what you want"
            )
        return found


def known_answers(artifact: ArtifactEntry) -> tuple[KnownAnswer, ...]:
    """An artifact's known answers as arrays, ready for :class:`~edgescribe.runtimes.contract.OpenOptions`."""
    return tuple(
        KnownAnswer(
            feeds={name: np.asarray(rows, np.int32) for name, rows in entry.feeds.items()},
            expected={
                name: np.asarray(values, np.float32).reshape(entry.shapes[name])
                for name, values in entry.outputs.items()
            },
            tolerance=entry.tolerance,
        )
        for entry in artifact.known_answers
    )


def task_of(path: str | os.PathLike[str]) -> str:
    """What a bundle says that its student does (``generate``, …); an empty string for what cannot be read as one.

    A first look, to know how to open it: opening checks everything.
    """
    try:
        raw = read_limited(Path(path).resolve(), MANIFEST_NAME, MANIFEST_LIMIT)
        return msgspec.json.decode(raw, type=_Task).task
    except (BundleError, OSError, ValueError, msgspec.MsgspecError):
        return ""


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read a bundle and check all of it.

    Raises:
        BundleError: it is missing, damaged, was changed, or is of a version that cannot be read here; the message
            says what was found, where, and what to do.
    """
    folder = _folder(path)
    raw = read_limited(folder, MANIFEST_NAME, MANIFEST_LIMIT)
    _check_seal(folder, raw)
    manifest = decode_manifest(raw, folder)
    _check_artifact_files(folder, manifest)
    return Bundle(folder, manifest, _read_tokenizer(folder, manifest))


def decode_manifest(raw: bytes, folder: Path) -> Manifest:
    """Decode ``bundle.json`` strictly and check that its parts agree; ``folder`` is for the messages.

    Raises:
        BundleError: it is not a manifest of schema version 1, or contradicts itself.
    """
    where = folder / MANIFEST_NAME
    try:
        version = msgspec.json.decode(raw, type=_Version).schema_version
        if version != SCHEMA_VERSION or isinstance(version, bool | float):
            raise BundleError(
                f"{where}: its schema_version is {str(version)[:40]!r}; this edgescribe reads {SCHEMA_VERSION} only: "
                "install the edgescribe that made it, or convert the student again"
            )
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        # The message may quote the file: keep control characters and endless names off the terminal.
        fault = "".join(character if character.isprintable() else "?" for character in str(error)[:300])
        raise BundleError(f"{where} cannot be read as a manifest: {fault}; {REMEDY}") from None
    try:
        check_manifest(manifest)
    except BundleError as error:
        raise BundleError(f"{folder}: {error}") from None
    return manifest


def seal_of(raw: bytes) -> bytes:
    """The content of ``bundle.json.sha256`` for a manifest of these bytes."""
    return f"{sha256(raw).hexdigest()}  {MANIFEST_NAME}\n".encode("ascii")


def _folder(path: str | os.PathLike[str]) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise BundleError(f"a bundle is given by the path of its folder, not by {type(path).__name__}")
    try:
        folder = Path(path).resolve(strict=True)
    except FileNotFoundError:
        raise BundleError(f"{path}: there is no such folder; give the folder that edgescribe convert wrote") from None
    except (OSError, RuntimeError, ValueError) as error:
        raise BundleError(f"{path!s}: the bundle cannot be reached ({error}); check the path") from None
    if not folder.is_dir():
        raise BundleError(f"{path}: this is a file; a bundle is a folder with {MANIFEST_NAME} in it: give the folder")
    if not (folder / MANIFEST_NAME).exists():
        raise BundleError(
            f"{path}: there is no {MANIFEST_NAME} in this folder, so it is no bundle; give the folder that "
            "edgescribe convert wrote"
        )
    return folder


def _check_seal(folder: Path, raw: bytes) -> None:
    if read_limited(folder, SEAL_NAME, 4096) != seal_of(raw):
        raise BundleError(
            f"{folder}: {MANIFEST_NAME} was changed after it was written (its SHA-256 is not the one in {SEAL_NAME}); "
            f"{REMEDY}"
        )


def _check_artifact_files(folder: Path, manifest: Manifest) -> None:
    for artifact in manifest.artifacts:
        for number, entry in enumerate(artifact.files):
            head = verify_file(folder, entry)
            opened = number == 0 or entry.path.endswith(SUFFIXES[artifact.runtime][0])
            if opened and not _looks_like(artifact.runtime, head):
                raise BundleError(
                    f"{folder}: {entry.path!r} does not begin like a file for {artifact.runtime}; "
                    "convert the student again"
                )


def _looks_like(runtime: str, head: bytes) -> bool:
    """A first look at a file's content, which also keeps pickles (0x80) and archives ("PK") from any parser."""
    if runtime == "litert":
        return head[4:8] == b"TFL3"
    if runtime == "openvino":
        return head.removeprefix(b"\xef\xbb\xbf").startswith((b"<?xml", b"<net"))
    return bool(head) and head[0] != 0x80 and not head.startswith(b"PK")


def _read_tokenizer(folder: Path, manifest: Manifest) -> Tokenizer:
    entry = manifest.tokenizer
    content = read_verified(folder, _limited(folder, entry.file), TOKENIZER_LIMIT)
    try:
        tokenizer = Tokenizer(
            content,
            max_tokens=entry.max_tokens,
            pad_id=entry.pad_id,
            pad_type_id=entry.pad_type_id,
            padding_side=entry.padding_side,
            truncates=manifest.writing is None and manifest.summarizing is None,
        )
    except BundleError as error:
        raise BundleError(f"{folder}, {entry.file.path}: {error}") from None
    # Some engines read memory that they should not for an id that the embedding does not have.
    answers = [answer for artifact in manifest.artifacts for answer in artifact.known_answers]
    largest = max([entry.pad_id, *(max(row) for answer in answers for row in answer.feeds["input_ids"])])
    writing = manifest.writing or manifest.summarizing
    if writing is not None:
        _check_vocabulary(folder, writing, tokenizer)
    if largest >= tokenizer.vocabulary_size:
        raise BundleError(
            f"{folder}: {MANIFEST_NAME} names the token {largest} (as pad_id or in a known answer), but the tokenizer "
            f"has only {tokenizer.vocabulary_size}; convert the student again"
        )
    return tokenizer


def _check_vocabulary(folder: Path, writing: WritingEntry | SummarizingEntry, tokenizer: Tokenizer) -> None:
    """A model may have rows that no token stands for (padding of its vocabulary), but no token without a row."""
    if tokenizer.vocabulary_size > writing.vocabulary:
        raise BundleError(
            f"{folder}: the tokenizer has {tokenizer.vocabulary_size} tokens and the student {writing.vocabulary}; "
            "convert the student again"
        )


def decoder_answers(artifact: ArtifactEntry) -> tuple[DecoderAnswer, ...]:
    """A writer's known answers as arrays, ready for :class:`~edgescribe.runtimes.decoder_contract.DecoderOptions`."""
    return tuple(
        DecoderAnswer(
            prompt=np.asarray(entry.prompt, np.int32),
            tokens=np.asarray(entry.tokens, np.int32),
            expected=np.asarray(entry.logits, np.float32),
            tolerance=entry.tolerance,
        )
        for entry in artifact.answers
    )


def source_answers(artifact: ArtifactEntry) -> tuple[SourceAnswer, ...]:
    """A summariser's known answers as arrays, ready for
    :class:`~edgescribe.runtimes.encoder_decoder_contract.EncoderDecoderOptions`.
    """
    return tuple(
        SourceAnswer(
            source=np.asarray(entry.source, np.int32),
            prompt=np.asarray(entry.prompt, np.int32),
            tokens=np.asarray(entry.tokens, np.int32),
            expected=np.asarray(entry.logits, np.float32),
            tolerance=entry.tolerance,
        )
        for entry in artifact.source_answers
    )


def _limited(folder: Path, entry: FileEntry) -> FileEntry:
    if entry.bytes > TOKENIZER_LIMIT:
        raise BundleError(
            f"{folder}: the tokenizer {entry.path!r} has {entry.bytes:,} bytes, more than the {TOKENIZER_LIMIT:,} "
            "allowed; convert the student with a smaller vocabulary"
        )
    return entry
