"""GGUF files (llama.cpp's format): weights in float32 again, under the names of an ordinary checkpoint.

The quantised values are what llama.cpp computes with, to the last bit; what its converter changed on the way into
the file is changed back: the order of rotated rows (Llama), gains counted from 1 (Gemma), transposed matrices (GPT-2).
The format is described in ggml's ``docs/gguf.md``.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import StudentError
from .families.decoder_layers import llama3_scaling
from .gguf_contents import GgufContents
from .gguf_tokenizers import read_gguf_tokenizer
from .stored_student import StoredStudent

SUFFIX = ".gguf"

Array = NDArray[np.float32]

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

GPT2_LAYER_NAMES = {
    "attn_norm": "ln_1",
    "ffn_norm": "ln_2",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}

GPT2_NAMES = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}

FIELDS = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "context_length": "max_position_embeddings",
}

GPT2_FIELDS = {
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
    "context_length": "n_positions",
}

NEEDED = ("embedding_length", "block_count", "feed_forward_length", "attention.head_count", "context_length")

ARCHITECTURES = {"llama": "silu", "qwen2": "silu", "qwen3": "silu", "gemma": "gelu_pytorch_tanh", "gpt2": "gelu_new"}
"""The architectures that are read, named as ``model_type`` is, and their activations, which a file does not tell."""


def gguf_in(path: Path) -> Path | None:
    """The GGUF file that ``path`` is, or the one in that folder where it has no ``config.json``; None if there is none.

    Raises:
        StudentError: the folder holds several.
    """
    if path.is_file():
        return path if path.suffix == SUFFIX else None
    if (path / "config.json").is_file():
        return None
    found = sorted(path.glob(f"*{SUFFIX}"))
    if len(found) > 1:
        raise StudentError(f"{path} holds {len(found)} GGUF files; name the one to read: {found[0].name}, …")
    return found[0] if found else None


def read_gguf(path: Path) -> StoredStudent:
    """Configuration, weights, tokenizer and chat template of a GGUF file.

    Raises:
        StudentError: the package ``gguf`` is missing, the file is damaged, or of an architecture that is not read.
    """
    if find_spec("gguf") is None:
        raise StudentError(
            f"reading {path} needs the package gguf; install the workbench: pip install 'edgescribe[convert]'"
        )
    contents = GgufContents(path)
    metadata = contents.metadata
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise StudentError(
            f"{path} is of the architecture {architecture!r}; GGUF files of these are read: "
            f"{', '.join(ARCHITECTURES)}. Give the checkpoint folder that it was made from"
        )
    arrays = {name: contents.tensor(name) for name in contents.names()}
    if "token_embd.weight" not in arrays:
        raise StudentError(f"{path} holds no token_embd.weight; it is not a whole model (a part, or an adapter)")
    config = _config(path, architecture, metadata, arrays)
    tokenizer, tokenizer_config, generation = read_gguf_tokenizer(path, metadata)
    config |= {name: number for name, number in generation.items() if name.endswith("_token_id")}
    template = metadata.get("tokenizer.chat_template")
    return StoredStudent(
        config,
        _state(path, architecture, config, arrays),
        _hash(path),
        tokenizer,
        tokenizer_config,
        generation,
        template if isinstance(template, str) else None,
    )


def _config(path: Path, architecture: str, metadata: Mapping[str, Any], arrays: Mapping[str, Array]) -> dict[str, Any]:
    """As ``config.json`` would have it."""
    for field, usual in (("expert_count", 0), ("attention.causal", True)):
        value = metadata.get(f"{architecture}.{field}", usual)
        if value != usual:
            raise StudentError(f"{path} has {architecture}.{field} {value!r}, which is not supported")
    fields = GPT2_FIELDS if architecture == "gpt2" else FIELDS
    config: dict[str, Any] = {"model_type": architecture}
    for stored, name in fields.items():
        value = metadata.get(f"{architecture}.{stored}")
        if isinstance(value, list):
            raise StudentError(f"{path} has another {architecture}.{stored} in each layer, which is not supported")
        if value is None and stored in NEEDED:
            raise StudentError(f"{path} lacks {architecture}.{stored} ({name}); download it again")
        if value is not None:
            kind = float if stored.endswith("epsilon") else int
            if not isinstance(value, kind) or isinstance(value, bool) or value <= 0:
                raise StudentError(f"{path} has {architecture}.{stored} {value!r}, where a positive number is expected")
            config[name] = value
    config["vocab_size"] = int(arrays["token_embd.weight"].shape[0])
    config["tie_word_embeddings"] = "output.weight" not in arrays
    if architecture == "gpt2":
        return config | {"activation_function": ARCHITECTURES[architecture]}
    config["hidden_act"] = ARCHITECTURES[architecture]
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    rotated = metadata.get(f"{architecture}.rope.dimension_count", config["head_dim"])
    if rotated != config["head_dim"]:
        raise StudentError(
            f"{path} turns {rotated!r} of each head's {config['head_dim']} units by rotary positions; all are supported"
        )
    config["rope_parameters"] = _rotary(path, architecture, metadata, arrays, config)
    if "blk.0.attn_q.bias" in arrays and architecture != "qwen2":
        config["attention_bias"] = True
    if "blk.0.ffn_up.bias" in arrays:
        config["mlp_bias"] = True
    return config


def _rotary(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    arrays: Mapping[str, Array],
    config: Mapping[str, Any],
) -> dict[str, Any]:
    base = metadata.get(f"{architecture}.rope.freq_base", 10000.0)
    if not isinstance(base, float) or not 1 < base < math.inf:
        raise StudentError(f"{path} has {architecture}.rope.freq_base {base!r}, where a number over 1 is expected")
    kind = metadata.get(f"{architecture}.rope.scaling.type", "none")
    if kind == "linear":
        factor = metadata.get(f"{architecture}.rope.scaling.factor", 1.0)
        return {"rope_type": "linear", "rope_theta": base, "factor": factor}
    if kind != "none":
        raise StudentError(f"{path} scales rotary positions by {kind!r}; supported are none, linear and Llama 3's")
    if "rope_freqs.weight" not in arrays:
        return {"rope_type": "default", "rope_theta": base}
    scaling = llama3_scaling(arrays["rope_freqs.weight"].reshape(-1).tolist(), base, int(config["head_dim"]))
    if scaling is None:
        raise StudentError(f"{path} scales rotary positions by rope_freqs.weight otherwise than Llama 3 does")
    return scaling


def _state(
    path: Path, architecture: str, config: Mapping[str, Any], arrays: Mapping[str, Array]
) -> dict[str, torch.Tensor]:
    of_gpt2 = architecture == "gpt2"
    names, layer_names = (GPT2_NAMES, GPT2_LAYER_NAMES) if of_gpt2 else (NAMES, LAYER_NAMES)
    start = "transformer.h" if of_gpt2 else "model.layers"
    change = _CHANGES.get(architecture)
    state = {}
    for stored, array in arrays.items():
        if stored == "rope_freqs.weight":
            continue
        found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", stored)
        layer, part, ending = found.groups() if found is not None else (None, "", "")
        known = names.get(part) if layer is None else layer_names.get(part)
        if known is None:
            raise StudentError(f"{path} holds {stored}, which a {architecture} has no use for here")
        name = f"{known}.{ending}" if layer is None else f"{start}.{layer}.{known}.{ending}"
        changed = array if change is None else change(part, ending, array, config)
        # What was stored in float is the mapped file itself.
        state[name] = torch.from_numpy(np.require(changed, requirements=("C", "W")))
    return state


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# What llama.cpp's converter changed
def _of_llama(part: str, ending: str, array: Array, config: Mapping[str, Any]) -> Array:
    """Rows of queries and keys stand in rotated pairs (0, D/2, 1, D/2 + 1, …); back to halves."""
    counts = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    if part not in counts:
        return array
    heads = counts[part]
    if array.shape[0] % (2 * heads):
        raise StudentError(f"{part} has {array.shape[0]} rows, which are not those of {heads} heads")
    paired = array.reshape(heads, array.shape[0] // heads // 2, 2, *array.shape[1:])
    return paired.swapaxes(1, 2).reshape(array.shape)


def _of_gemma(part: str, ending: str, array: Array, config: Mapping[str, Any]) -> Array:
    return array - np.float32(1) if part.endswith("norm") else array


def _of_gpt2(part: str, ending: str, array: Array, config: Mapping[str, Any]) -> Array:
    return array.T if ending == "weight" and part in ("attn_qkv", "attn_output", "ffn_up", "ffn_down") else array


_CHANGES: dict[str, Callable[[str, str, Array, Mapping[str, Any]], Array]] = {
    "llama": _of_llama,
    "gemma": _of_gemma,
    "gpt2": _of_gpt2,
}
