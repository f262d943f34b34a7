"""Students of the fixture's kind in memory."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def summarizer(summary_files: Any) -> Any:
    """The trained student, read from its folder."""
    from edgescribe.converters.read import read_student

    return read_student(summary_files.student, "summarize")


@pytest.fixture(scope="session")
def evaluation_texts(summary_files: Any) -> Any:
    """The rows that nothing was trained on."""
    from edgescribe.converters.conversion_data import read_texts

    return read_texts(summary_files.evaluation, "summarize")


@pytest.fixture(scope="session")
def trimmed(summarizer: Any) -> Any:
    """The student with just the tokens that a few texts use, under other numbers."""
    from edgescribe.converters.vocabulary import trim_vocabulary

    return trim_vocabulary(summarizer, ["summarize: Today Anna buys tea outside.", "Bruno often sells bread nearby"])


@pytest.fixture(params=["bart", "marian", "mt5"])
def make_seq2seq(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A tiny random student of another family and transformers' own model of it; token 2 starts, 1 ends a text."""
    import json

    import torch
    import transformers
    from edgescribe.converters.anatomy import anatomy_of
    from edgescribe.converters.student import Student

    family = request.param
    sizes: dict[str, Any] = {
        "vocab_size": 51, "d_model": 32, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3,
        "decoder_start_token_id": 2, "forced_bos_token_id": None, "forced_eos_token_id": None,
    }  # fmt: skip
    if family == "mt5":
        sizes |= {"d_kv": 8, "d_ff": 40, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 3}
    else:
        sizes |= {
            "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
            "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "max_position_embeddings": 64,
        }  # fmt: skip
    torch.manual_seed(5)
    config = transformers.AutoConfig.for_model(family, **sizes)
    anatomy = anatomy_of(family)
    model = getattr(transformers, anatomy.architectures["summarize"])(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed_positions" not in name:
                parameter.normal_(0, 0.25)
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    plain = json.loads(model.config.to_json_string(use_diff=False))
    if anatomy.settle is not None:
        plain, state = anatomy.settle(plain, state)
    student = Student(
        config=plain, state=state, tokenizer=None, tokenizer_config={}, task="summarize", labels=(), max_tokens=64,
        pad_id=0, source=family, sha256="0" * 64,
    )  # type: ignore[arg-type]  # fmt: skip
    state = {name: state[name] for name in student.layout}
    return student.with_state(state), model
