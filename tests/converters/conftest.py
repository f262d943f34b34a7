"""Tiny real students: random weights made by transformers, tokenizers trained on a few sentences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fixed_vocabulary import give_unigram, give_wordpiece

SENTENCES = [
    "a small game of chess for two players",
    "the network daemon routes packets between hosts",
    "plays music files and streams of sound, with an equaliser",
    "a library for reading and writing compressed archives",
    "tools for editing text: search, replace & count",
    "documentation of the system's kernel, version 2.6",
    "graphical viewer for photographs; it shows thumbnails",
    "Ein kleines Spiel für zwei Personen (über das Netz)",
    "simple mail reader with filters and folders",
    "scientific plotting, statistics and linear algebra",
]

SPECIAL = {
    "bert": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    "roberta": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
    "albert": ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"),
    "xlnet": ("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>"),
}
SPECIAL["mpnet"] = SPECIAL["roberta"]
SPECIAL["distilbert"] = SPECIAL["electra"] = SPECIAL["bert"]

KIND_OF = {
    "bert": "wordpiece",
    "distilbert": "wordpiece",
    "electra": "wordpiece",
    "mpnet": "wordpiece",
    "roberta": "bpe",
    "albert": "unigram",
    "xlnet": "unigram",
}


def train_tokenizer(family: str, kind: str, sentences: list[str], size: int) -> Any:
    """A tokenizer of the family's special tokens, trained on ``sentences``."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = list(SPECIAL[family])
    unknown = next(token for token in special if "unk" in token.lower())
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        give_wordpiece(tokenizer, sentences, size, special, unknown)
    elif kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(sentences * 3, trainer)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        give_unigram(tokenizer, sentences, size, special, unknown)
    first, last = ("<s>", "</s>") if family in ("roberta", "mpnet") else ("[CLS]", "[SEP]")
    single = f"{first} $A {last}"
    if family == "xlnet":
        first, last = "<cls>", "<sep>"
        single = "$A:0 <sep>:0 <cls>:2"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (first, last)],
    )
    return tokenizer


def named_tokens(family: str) -> dict[str, str]:
    """What ``tokenizer_config.json`` calls the special tokens."""
    named = {}
    for token in SPECIAL[family]:
        for name in ("pad", "unk", "cls", "sep", "mask"):
            if name in token.lower():
                named[f"{name}_token"] = token
    if "<s>" in SPECIAL[family]:
        named |= {"bos_token": "<s>", "eos_token": "</s>"}
    if family in ("roberta", "mpnet"):
        named |= {"cls_token": "<s>", "sep_token": "</s>"}
    return named


def sizes_of(family: str) -> dict[str, Any]:
    """Odd sizes in the names of the family's configuration: 3 heads of 4 units, 10 neurons."""
    if family == "distilbert":
        return {"n_layers": 2, "dim": 12, "n_heads": 3, "hidden_dim": 10, "max_position_embeddings": 40}
    if family == "xlnet":
        return {"n_layer": 2, "d_model": 12, "n_head": 3, "d_inner": 10}
    sizes: dict[str, Any] = {
        "num_hidden_layers": 2,
        "hidden_size": 12,
        "num_attention_heads": 3,
        "intermediate_size": 10,
        "max_position_embeddings": 40,
    }
    if family in ("albert", "electra"):
        sizes["embedding_size"] = 7
    if family != "mpnet":
        sizes["type_vocab_size"] = 1
    return sizes


def build_model(
    family: str, task: str, vocabulary: int, ids: dict[str, int], seed: int, options: dict[str, Any]
) -> Any:
    """transformers' model of a family with weights large enough that every one of them shows in the outputs."""
    import torch
    import transformers
    from edgescribe.converters.anatomy import anatomy_of

    anatomy = anatomy_of(family)
    labels = {0: "games", 1: "net", 2: "sound"}
    settings = {"vocab_size": vocabulary, **ids, **sizes_of(family), **options}
    if task != "embed":
        settings |= {"id2label": labels, "label2id": {name: number for number, name in labels.items()}}
    config = transformers.AutoConfig.for_model(family, **settings)
    torch.manual_seed(seed)
    model = getattr(transformers, anatomy.architectures[task])(config).eval()  # type: ignore[index]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.4)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    return list(SENTENCES)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """``make_tokenizer(family, kind=…, size=…)``: a tokenizer of a few sentences' pieces, made once."""
    from tokenizers import Tokenizer

    trained: dict[tuple[str, str, int], str] = {}

    def make(family: str, kind: str = "", size: int = 0) -> Any:
        kind = kind or KIND_OF[family]
        key = (family, kind, size or {"bpe": 341}.get(kind, 131))
        if key not in trained:
            trained[key] = train_tokenizer(family, kind, SENTENCES, key[2]).to_str()
        return Tokenizer.from_str(trained[key])

    return make


@pytest.fixture(scope="session")
def make_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable[..., Any]
) -> Callable[..., tuple[Path, Any]]:
    """``make_checkpoint(family, task, seed=0, tokenizer=None, **config)``: a folder as transformers saves it, and its
    model in memory."""

    def make(
        family: str, task: str = "classify", seed: int = 0, tokenizer: Any = None, **options: Any
    ) -> tuple[Path, Any]:
        from transformers import PreTrainedTokenizerFast

        tokenizer = tokenizer or make_tokenizer(family)
        named = named_tokens(family)
        ids = {"pad_token_id": tokenizer.token_to_id(named["pad_token"])}
        rows = options.pop("vocab_size", tokenizer.get_vocab_size())
        model = build_model(family, task, rows, ids, seed, options)
        folder = tmp_path_factory.mktemp(f"{family}-{task}")
        model.save_pretrained(folder)
        side = "left" if family == "xlnet" else "right"
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side=side, model_max_length=32, **named)
        fast.save_pretrained(folder)
        return folder, model

    return make


@pytest.fixture(scope="session")
def make_student(make_checkpoint: Callable[..., tuple[Path, Any]]) -> Callable[..., Any]:
    """``make_student(family, task, seed=0, tokenizer=None, **config)``: a tiny student that was read from a folder."""
    from edgescribe.converters.read import read_student

    def make(family: str, task: Any = "classify", **options: Any) -> Any:
        folder, _ = make_checkpoint(family, task, **options)
        return read_student(folder, task)

    return make


@pytest.fixture(scope="session")
def in_double() -> Callable[[Any], Any]:
    """``in_double(student)``: the same weights in float64, for comparisons that rounding has no part in.

    Layer norms of random models can make float32's rounding a hundred times larger.
    """

    def convert(student: Any) -> Any:
        return student.with_state({name: tensor.double() for name, tensor in student.state.items()})

    return convert


@pytest.fixture(scope="session")
def make_exact_student(make_student: Callable[..., Any], in_double: Callable[[Any], Any]) -> Callable[..., Any]:
    """As ``make_student``, in float64."""
    return lambda *arguments, **options: in_double(make_student(*arguments, **options))


@pytest.fixture(scope="session")
def answers_of() -> Callable[..., Any]:
    """``answers_of(student, texts)``: what a student answers in its weights' precision, one row after the other."""
    import torch
    from edgescribe.converters.predict import predict
    from edgescribe.converters.torch_graph import TorchGraph
    from edgescribe.converters.training_data import make_examples

    def answer(student: Any, texts: list[str]) -> Any:
        outputs = predict(TorchGraph(student), make_examples(student, texts, None))
        return torch.cat([torch.from_numpy(each).reshape(-1, each.shape[-1]) for each in outputs])

    return answer


WRITER_SIZES: dict[str, Any] = {
    "hidden_size": 18,
    "num_hidden_layers": 2,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 4,
    "intermediate_size": 13,
    "max_position_embeddings": 48,
    "rms_norm_eps": 1e-9,
}
"""Odd sizes of a writer: 3 groups of 3 heads, whose widths are no part of the hidden width."""

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def writer_sizes(family: str) -> dict[str, Any]:
    if family == "gpt2":
        return {"n_embd": 12, "n_layer": 2, "n_head": 3, "n_inner": 10, "n_positions": 48, "layer_norm_epsilon": 1e-9}
    return dict(WRITER_SIZES)


@pytest.fixture(scope="session")
def writer_tokenizer() -> Callable[[], Any]:
    """``writer_tokenizer()``: byte-level BPE with ChatML's tokens, an odd number of tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=393,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    spoken = ["user\nassistant\nsystem\n", "the user and the assistant of a system"]
    tokenizer.train_from_iterator(sorted(SENTENCES * 3 + spoken * 3), trainer)
    text = tokenizer.to_str()
    return lambda: Tokenizer.from_str(text)


def build_writer(family: str, vocabulary: int, seed: int, options: dict[str, Any]) -> Any:
    """transformers' model, each of whose weights is large enough to show in the logits, biases and norms too."""
    import torch
    import transformers
    from edgescribe.converters.anatomy import anatomy_of

    settings = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": vocabulary}
    config = transformers.AutoConfig.for_model(family, **{**settings, **writer_sizes(family), **options})
    torch.manual_seed(seed)
    model = getattr(transformers, anatomy_of(family).architectures["generate"])(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    defaults = {"bos_token_id": 1, "eos_token_id": [2, 0], "pad_token_id": 0}
    model.generation_config = transformers.GenerationConfig(**defaults, do_sample=True, temperature=0.7, top_p=0.9)
    return model


WRITER_TOKENS = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


@pytest.fixture(scope="session")
def make_writer_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, writer_tokenizer: Callable[[], Any]
) -> Callable[..., tuple[Path, Any]]:
    """``make_writer_checkpoint(family, seed=0, **config)``: a folder as transformers saves it, and its model."""

    def make(family: str, seed: int = 0, **options: Any) -> tuple[Path, Any]:
        from transformers import PreTrainedTokenizerFast

        tokenizer = writer_tokenizer()
        model = build_writer(family, tokenizer.get_vocab_size(), seed, options)
        folder = tmp_path_factory.mktemp(family)
        model.save_pretrained(folder)
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **WRITER_TOKENS)
        fast.chat_template = CHAT
        fast.save_pretrained(folder)
        return folder, model

    return make


@pytest.fixture(scope="session")
def make_writer(writer_tokenizer: Callable[[], Any]) -> Callable[..., Any]:
    """``make_writer(family, seed=0, **config)``: a tiny writer as it is read from such a folder, without the folder."""
    import json

    from edgescribe.converters.student import Student

    def make(family: str, seed: int = 0, **options: Any) -> Any:
        tokenizer = writer_tokenizer()
        model = build_writer(family, tokenizer.get_vocab_size(), seed, options)
        tied = model.config.tie_word_embeddings
        return Student(
            config=json.loads(model.config.to_json_string(use_diff=False)),
            state={
                name: tensor.detach().clone()
                for name, tensor in model.state_dict().items()
                if not (tied and name == "lm_head.weight")
            },
            tokenizer=tokenizer,
            tokenizer_config=dict(WRITER_TOKENS),
            task="generate",
            labels=(),
            max_tokens=48,
            pad_id=0,
            source=family,
            sha256="",
            generation=json.loads(model.generation_config.to_json_string()),
            chat_template=CHAT,
        )

    return make


@pytest.fixture(scope="session")
def logits_of() -> Callable[..., Any]:
    """``logits_of(student, texts)``: a writer's logits at every token of each text, one row after the other."""
    import torch
    from edgescribe.converters.torch_decoder import graph_of

    def answer(student: Any, texts: list[str]) -> Any:
        graph, rows = graph_of(student).eval(), []
        for text in texts:
            ids = torch.tensor([student.tokenizer.encode(text).ids])
            with torch.no_grad():
                rows.append(graph.run({"input_ids": ids})["logits"][0])
        return torch.cat(rows)

    return answer
