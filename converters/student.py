"""A student: an ordinary checkpoint (configuration, weights, tokenizer) with the task that it serves.

At every stage of conversion a student can be written as a folder that plain ``transformers.from_pretrained``
loads, and read back from it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from . import generation_defaults, tokenizer_files
from .anatomy import Anatomy, Parameter, Shape, Task, anatomy_of


@dataclass(frozen=True)
class Student:
    """A student held in memory.

    Attributes:
        config: the checkpoint's ``config.json``.
        state: weights by full checkpoint name, float32 on the CPU: just the tensors that ``task`` needs. In float64
            a student is pruned and answers in float64 (for comparisons without float32's rounding).
        tokenizer: as of ``tokenizer.json``, with neither padding nor truncation set.
        tokenizer_config: content of ``tokenizer_config.json`` (may be empty).
        task: what it is to do.
        labels: class or tag names in the order of the logits; empty for ``embed`` and ``generate``.
        max_tokens: longest input, special tokens included.
        pad_id: id of the padding token.
        source: where it was read from, as the user named it.
        sha256: hash of the weights file it was read from.
        generation: content of ``generation_config.json`` (sampling defaults, tokens that end a text); may be empty.
        chat_template: the Jinja template that turns a conversation into a prompt; None where it has none.
    """

    config: dict[str, Any]
    state: dict[str, torch.Tensor]
    tokenizer: Tokenizer
    tokenizer_config: dict[str, Any]
    task: Task
    labels: tuple[str, ...]
    max_tokens: int
    pad_id: int
    source: str
    sha256: str
    generation: dict[str, Any] = field(default_factory=dict)
    chat_template: str | None = None

    @property
    def anatomy(self) -> Anatomy:
        """The family's description."""
        return anatomy_of(self.config["model_type"])

    @property
    def shape(self) -> Shape:
        """Sizes read from the configuration."""
        return self.anatomy.shape(self.config)

    @property
    def layout(self) -> dict[str, Parameter]:
        """What each tensor of ``state`` is."""
        return self.anatomy.layout(self.task, self.shape)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The tokens that end a text that it writes; empty where nothing names one."""
        token = tokenizer_files.special_token(self.tokenizer_config, "eos_token")
        number = None if token is None else self.tokenizer.token_to_id(token)
        return generation_defaults.eos_ids(self.generation, self.config, number)

    def parameter_count(self) -> int:
        """Number of weights."""
        return sum(tensor.numel() for tensor in self.state.values())

    def with_state(self, state: dict[str, torch.Tensor]) -> Student:
        """The same student with other weights of the same shapes."""
        return replace(self, state=state)

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write the checkpoint folder (``config.json``, ``model.safetensors``, tokenizer files), creating it.

        A writer's ``generation_config.json`` and ``chat_template.jinja`` are written where it has them.
        """
        folder.mkdir(parents=True, exist_ok=True)
        config = {name: value for name, value in self.config.items() if name != "_name_or_path"}
        config["architectures"] = [self.anatomy.architectures[self.task]]
        config.pop("torch_dtype", None)
        config["dtype"] = str(dtype).removeprefix("torch.")
        if self.labels:
            config["id2label"] = {str(index): label for index, label in enumerate(self.labels)}
            config["label2id"] = {label: index for index, label in enumerate(self.labels)}
        state = {name: tensor.to(dtype).contiguous().clone() for name, tensor in self.state.items()}
        if self.anatomy.copies is not None:
            state |= {copy: state[name].clone() for copy, name in self.anatomy.copies(self.shape).items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        self.tokenizer.save(str(folder / "tokenizer.json"))
        if self.generation:
            text = json.dumps(self.generation, indent=2, sort_keys=True) + "\n"
            (folder / generation_defaults.FILE).write_text(text, encoding="utf-8")
        if self.chat_template is not None:
            (folder / tokenizer_files.CHAT_TEMPLATE).write_text(self.chat_template, encoding="utf-8", newline="")
        tokenizer_config = dict(self.tokenizer_config)
        if self.task in ("generate", "summarize"):
            # Other classes build a tokenizer of their own out of the vocabulary, whatever tokenizer.json says.
            tokenizer_config["tokenizer_class"] = "PreTrainedTokenizerFast"
        if tokenizer_config:
            text = json.dumps(tokenizer_config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
            (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
