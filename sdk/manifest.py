"""``bundle.json``: the typed content of a bundle, decoded strictly (schema version 1).

Nothing here touches the disk; :mod:`edgescribe.sdk.bundle` reads, checks and writes bundles.
Paths are relative to the bundle's folder, with forward slashes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

SCHEMA_VERSION = 1

RelativePath = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
Bytes = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
Dimension = Annotated[int, msgspec.Meta(ge=1, le=2**24)]
Token = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
Task = Literal["classify", "tag", "embed", "generate", "summarize"]
RuntimeName = Literal["onnxruntime", "openvino", "litert"]
Precision = Literal["fp32", "w8a8-static", "w8a8-dynamic", "w4a8-dynamic", "w8a16-static"]


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every object in the manifest: immutable, and strict about its keys."""


class FileEntry(Entry, frozen=True, kw_only=True):
    """A file of the bundle with its size in bytes and the SHA-256 of its content."""

    path: RelativePath
    sha256: Sha256
    bytes: Bytes


class Tensor(Entry, frozen=True, kw_only=True):
    """An input or output of an artifact; None in ``shape`` is free at run time."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    dtype: Literal["int32", "float32"]
    shape: Annotated[tuple[Dimension | None, ...], msgspec.Meta(max_length=8)]


class KnownAnswerEntry(Entry, frozen=True, kw_only=True):
    """Feeds and the outputs that the artifact gave for them where it was made, flattened with their shapes."""

    feeds: dict[str, list[list[Token]]]
    outputs: dict[str, list[float]]
    shapes: dict[str, tuple[Dimension, ...]]
    tolerance: Annotated[float, msgspec.Meta(gt=0, le=1e3)]


class DecoderAnswerEntry(Entry, frozen=True, kw_only=True):
    """After the tokens of ``prompt``, the ``logits`` that the artifact gave for ``tokens`` where it was made."""

    prompt: Annotated[tuple[Token, ...], msgspec.Meta(min_length=1, max_length=4096)]
    tokens: Annotated[tuple[Token, ...], msgspec.Meta(min_length=1, max_length=64)]
    logits: Annotated[tuple[float, ...], msgspec.Meta(min_length=1, max_length=64)]
    tolerance: Annotated[float, msgspec.Meta(gt=0, le=1e3)]


class SourceAnswerEntry(DecoderAnswerEntry, frozen=True, kw_only=True):
    """Having read the tokens of ``source``, after those of ``prompt``: as :class:`DecoderAnswerEntry`."""

    source: Annotated[tuple[Token, ...], msgspec.Meta(min_length=1, max_length=4096)]


class ArtifactEntry(Entry, frozen=True, kw_only=True):
    """One artifact: ``files[0]`` is what the runtime opens, the others lie beside it.

    ``buckets``: token counts that the artifact takes when its shapes are fixed (ascending), empty when they are free.
    A writer's artifact has ``answers``, a summariser's ``source_answers``, and no inputs, outputs and known answers:
    its tensors are the runtime's affair.
    """

    runtime: RuntimeName
    precision: Precision
    files: Annotated[tuple[FileEntry, ...], msgspec.Meta(min_length=1, max_length=8)]
    inputs: Annotated[tuple[Tensor, ...], msgspec.Meta(max_length=8)] = ()
    outputs: Annotated[tuple[Tensor, ...], msgspec.Meta(max_length=8)] = ()
    buckets: tuple[Dimension, ...] = ()
    known_answers: Annotated[tuple[KnownAnswerEntry, ...], msgspec.Meta(max_length=16)] = ()
    answers: Annotated[tuple[DecoderAnswerEntry, ...], msgspec.Meta(max_length=16)] = ()
    source_answers: Annotated[tuple[SourceAnswerEntry, ...], msgspec.Meta(max_length=16)] = ()


class WritingEntry(Entry, frozen=True, kw_only=True):
    """What a writer (task ``generate``) has beside its artifacts.

    Attributes:
        context: the most tokens, prompt and answer together.
        vocabulary: number of tokens that logits are given for.
        end_ids: tokens that end an answer.
        chat_template: the checkpoint's Jinja template of a conversation; None: it has none.
        special_tokens: texts of tokens that a template may name (``bos_token``, ``eos_token``, …).
        defaults: of generation, as the checkpoint has them: ``temperature``, ``top_k``, ``top_p``, ``min_p``,
            ``repetition_penalty``. Without ``temperature`` (or with 0) it is greedy.
    """

    context: Annotated[int, msgspec.Meta(ge=2, le=2**20)]
    vocabulary: Annotated[int, msgspec.Meta(ge=2, le=2**24)]
    end_ids: Annotated[tuple[Token, ...], msgspec.Meta(max_length=64)] = ()
    chat_template: Annotated[str, msgspec.Meta(max_length=100_000)] | None = None
    special_tokens: Annotated[dict[str, str], msgspec.Meta(max_length=32)] = {}
    defaults: Annotated[dict[str, float], msgspec.Meta(max_length=16)] = {}


class SummarizingEntry(Entry, frozen=True, kw_only=True):
    """What a summariser (task ``summarize``) has beside its artifacts.

    Attributes:
        source_context: the most tokens of a source, special tokens included.
        context: the most tokens of a summary, those that start it included.
        vocabulary: number of tokens that logits are given for.
        start_ids: tokens that every summary starts with (T5: the padding token; BART: ``</s>``, then what is forced).
        end_ids: tokens that end a summary.
        prefix: what is put before every source text (FLAN-T5: ``summarize: ``); may be empty.
        defaults: of generation: ``num_beams``, ``length_penalty``, ``early_stopping`` (0 or 1),
            ``no_repeat_ngram_size``, ``max_new_tokens``, ``min_new_tokens`` as the checkpoint has them, the last two
            counted behind ``start_ids``. Without ``num_beams`` (or with 1) it is greedy.
    """

    source_context: Annotated[int, msgspec.Meta(ge=2, le=2**20)]
    context: Annotated[int, msgspec.Meta(ge=2, le=2**20)]
    vocabulary: Annotated[int, msgspec.Meta(ge=2, le=2**24)]
    start_ids: Annotated[tuple[Token, ...], msgspec.Meta(min_length=1, max_length=8)]
    end_ids: Annotated[tuple[Token, ...], msgspec.Meta(max_length=64)] = ()
    prefix: Annotated[str, msgspec.Meta(max_length=2000)] = ""
    defaults: Annotated[dict[str, float], msgspec.Meta(max_length=16)] = {}


class TokenizerEntry(Entry, frozen=True, kw_only=True):
    """The tokenizer: a ``tokenizer.json`` of the tokenizers library; padding as the student was trained with."""

    file: FileEntry
    max_tokens: Annotated[int, msgspec.Meta(ge=2, le=65536)]
    pad_id: Annotated[int, msgspec.Meta(ge=0, le=2**24)]
    pad_type_id: Annotated[int, msgspec.Meta(ge=0, le=16)] = 0
    padding_side: Literal["left", "right"] = "right"


class Measurement(Entry, frozen=True, kw_only=True):
    """Figures of one artifact on one machine. ``how`` is measured, estimated, emulated or simulated.

    Latency in milliseconds of one call at batch 1 and ``tokens`` tokens; memory in MiB; ``samples`` calls timed.
    Of a writer: latency of one decode step behind a prompt of ``tokens`` tokens, ``ttft_ms`` from the prompt to the
    first token, ``tokens_per_s`` while decoding. Of a summariser the same behind a source of ``tokens`` tokens, where
    ``tokens_per_s`` counts the time of reading it too.
    """

    device: str
    machine: str
    runtime: RuntimeName
    precision: Precision
    how: Literal["measured", "estimated", "emulated", "simulated"]
    tokens: int
    samples: int
    threads: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    throughput_per_s: float
    load_ms: float
    peak_rss_mib: float
    disk_mib: float
    ttft_ms: float | None = None
    tokens_per_s: float | None = None


class Provenance(Entry, frozen=True, kw_only=True):
    """Where the bundle comes from: hashes are SHA-256 in hexadecimal; ``versions`` by package name."""

    source: str
    source_sha256: Sha256
    recipe: dict[str, Any]
    seed: int
    data_sha256: dict[str, Sha256]
    versions: dict[str, str]
    created: str


class Manifest(Entry, frozen=True, kw_only=True):
    """The whole of ``bundle.json``.

    ``writing``: of the task ``generate`` alone; ``summarizing``: of the task ``summarize`` alone.
    ``quality``: metrics by stage: ``teacher``, ``student`` and one ``<runtime>/<precision>`` for each artifact,
    each a mapping of metric name to value.
    """

    schema_version: Literal[1]
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    family: str
    task: Task
    labels: Annotated[tuple[str, ...], msgspec.Meta(max_length=100_000)] = ()
    tokenizer: TokenizerEntry
    writing: WritingEntry | None = None
    summarizing: SummarizingEntry | None = None
    artifacts: Annotated[tuple[ArtifactEntry, ...], msgspec.Meta(min_length=1, max_length=32)]
    quality: dict[str, dict[str, float]] = {}
    measurements: tuple[Measurement, ...] = ()
    provenance: Provenance
