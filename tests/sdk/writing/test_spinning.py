"""Writers whose engine's waiting threads spin, and those whose threads sleep: the same text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from edgescribe import UsageError, load_writer
from edgescribe.runtimes import onnxruntime_decoder


def test_threads_spin_where_it_is_asked_for(
    random_llama: Any, byte_level_json: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    from edgescribe.converters.make_writer_bundle import make_writer_bundle
    from edgescribe.converters.torch_decoder import graph_of
    from tokenizers import Tokenizer

    student = dataclasses.replace(random_llama, tokenizer=Tokenizer.from_str(byte_level_json.decode()))
    folder = make_writer_bundle(
        student, {"fp32": graph_of(student)}, ["onnxruntime"], tmp_path / "bundle",
        texts=["The committee met on Monday.", "A daemon routes packets"], source=student, recipe={}, seed=0,
        data_sha256={},
    ).folder  # fmt: skip
    entries, made = [], onnxruntime_decoder.engine_options

    def seen(*arguments: Any, **named: Any) -> Any:
        options = made(*arguments, **named)
        entries.append(options.get_session_config_entry("session.intra_op.allow_spinning"))
        return options

    monkeypatch.setattr(onnxruntime_decoder, "engine_options", seen)
    texts = []
    for spinning in ({}, {"spinning": False}, {"spinning": True}):
        with load_writer(folder, threads=2, **spinning) as writer:
            texts.append(writer.generate("The committee", max_new_tokens=8, temperature=0.0).text)
    assert entries == ["0", "0", "1"]
    assert len(set(texts)) == 1
    with pytest.raises(UsageError, match="spinning is 'yes'"):
        load_writer(folder, spinning="yes")  # type: ignore[arg-type]
