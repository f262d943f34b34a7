"""Make the student that ships: a small T5 that writes a package's one-line synopsis from its long description.

    python samples/debian_synopses/make_student.py --data FOLDER --out FOLDER
    python samples/debian_synopses/make_student.py --evaluate

``--data``: what ``build_pairs.py --out`` wrote. Training takes about an hour on two cores and is taken up where it was
left. There is no teacher and no stage before: everything is learned from the pairs of ``train.jsonl`` and
``more.jsonl``.

51,000 short synopses are few to learn from how to look things up in a source. So the weights do not start as mere
noise: ``wire`` sets some of them so that the model copies the source from the first step on (what trained models are
found to do: Olsson et al., In-context Learning and Induction Heads, 2022; starting from it: Trockman and Kolter,
Mimetic Initialization, 2023). Two hundred steps from there came lower than a thousand from noise.

The learning rate follows a cosine down to nothing at ``STEPS``, or when ``--minutes`` are over, whichever is nearer.
What ships is the state of the highest ROUGE-L on validation. ``--evaluate`` reads the shipped test split and
writes ``figures.json``: ROUGE of the student and of two plain methods, with 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from rouge_score.rouge_scorer import RougeScorer
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration, T5Tokenizer
from transformers.models.t5.modeling_t5 import T5Attention
from transformers.utils import logging

HERE = Path(__file__).resolve().parent
PAD, END = 0, 1
SOURCE_TOKENS, TARGET_TOKENS = 192, 32
PIECES = 8000
SHAPE = {
    "vocab_size": PIECES,
    "d_model": 192,
    "d_kv": 32,
    "num_heads": 6,
    "d_ff": 576,
    "num_layers": 4,
    "num_decoder_layers": 2,
}
STEPS, WARMUP, BATCH = 9000, 100, 24  # rows of a process
DROPOUT = 0.1  # not of attention's shares, where drawing costs more than it brings
RATE, EMBEDDING_RATE = 1.2e-3, 5e-3  # T5's embeddings start at a deviation of 1, its matrices at under a tenth
SMOOTHING = 0.1
VALIDATION_ROWS = 300
MEASURES = ("rouge1", "rouge2", "rougeL")

Row = dict[str, str]
Pair = tuple[list[int], list[int]]


def read_rows(folder: Path, name: str) -> list[Row]:
    """Rows of ``name.jsonl`` or ``name.jsonl.gz``."""
    plain = folder / f"{name}.jsonl"
    content = plain.read_bytes() if plain.is_file() else gzip.decompress(Path(f"{plain}.gz").read_bytes())
    return [json.loads(line) for line in content.splitlines()]


def make_tokenizer(texts: Iterable[str]) -> Any:
    """A unigram vocabulary learned from ``texts``, in T5's conventions: pad 0, end 1, unknown 2, end put last."""
    learner = Tokenizer(models.Unigram())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=PIECES, special_tokens=special, unk_token="<unk>", max_piece_length=16
    )
    learner.train_from_iterator(texts, trainer)
    pieces = [(piece, score) for piece, score in json.loads(learner.to_str())["model"]["vocab"]]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def encode(tokenizer: Any, rows: list[Row]) -> list[Pair]:
    """Token ids of texts and summaries, the end token last, cut to what the student reads and writes."""

    def ids(texts: list[str], most: int) -> list[list[int]]:
        return [i[: most - 1] + [END] if len(i) > most else i for i in tokenizer(texts)["input_ids"]]

    sources = ids([row["text"] for row in rows], SOURCE_TOKENS)
    return list(zip(sources, ids([row["summary"] for row in rows], TARGET_TOKENS), strict=True))


def orthonormal(rows: int, columns: int, noise: torch.Generator) -> torch.Tensor:
    """A matrix of orthonormal rows, or columns where those are fewer."""
    long, short = max(rows, columns), min(rows, columns)
    found = torch.linalg.qr(torch.randn(long, short, generator=noise))[0]
    return found if rows >= columns else found.T


@torch.no_grad()
def wire(model: Any) -> None:
    """Set weights of a fresh model so that it copies: after a token it writes what follows it in the source.

    A head of the first encoder layer notes at each position which token stands before (``seen``, put down at
    ``noted``). The decoder's first layer takes the token just written off the stream, lest it be written again, and
    asks for it (``asked``). Cross-attention finds the position that noted it and hands on the token there, which the
    tied embeddings turn into the likeliest one. All other branches start low, not to drown this.
    """
    noise = torch.Generator().manual_seed(7)
    shape = model.config
    width, hidden, heads = shape.d_kv, shape.d_model, shape.num_heads
    if heads * width != hidden:
        raise ValueError(f"{heads} heads of {width} do not make up the hidden width {hidden}, which wiring needs")
    seen, noted = orthonormal(width, hidden, noise), orthonormal(hidden, width, noise)
    asked = orthonormal(hidden, width, noise)
    for name, weight in model.named_parameters():
        if name.endswith((".o.weight", ".wo.weight")):
            weight *= 0.1

    first = model.encoder.block[0].layer[0].SelfAttention
    first.relative_attention_bias.weight[1, 0] = 6.0  # bucket 1: one back
    first.v.weight[:width] = seen
    first.o.weight[:, :width] = 2.0 * noted

    own = model.decoder.block[0].layer[0].SelfAttention
    used = heads - 1  # one head is left to look back
    own.relative_attention_bias.weight[0, :used] = 4.0  # bucket 0: the token itself
    turned = orthonormal(hidden, hidden, noise)
    own.v.weight.copy_(turned)
    own.o.weight[:, : used * width] = (2.0 * asked @ seen - torch.eye(hidden)) @ turned[: used * width].T

    for number, block in enumerate(model.decoder.block, 1):
        last = number == shape.num_decoder_layers
        cross = block.layer[1].EncDecAttention
        turned = orthonormal(hidden, hidden, noise)
        cross.v.weight.copy_(turned)
        cross.o.weight.copy_(turned.T * (2.0 if last else 1.0))
        for head in range(4 if last else 1):  # the others attend as they like
            rows = slice(head * width, (head + 1) * width)
            cross.q.weight[rows] = 0.3**0.5 * asked.T
            cross.k.weight[rows] = 0.3**0.5 * noted.T


def padded(rows: list[list[int]], fill: int) -> torch.Tensor:
    """One tensor of the rows, filled up at their ends."""
    width = max(map(len, rows))
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])


def batches(pairs: list[Pair], chance: random.Random) -> Iterator[list[Pair]]:
    """One epoch in batches of rows that are about as long as one another, for all processes together."""
    order = sorted(pairs, key=lambda pair: len(pair[0]) + chance.uniform(0, 12))
    size = BATCH * (dist.get_world_size() if dist.is_initialized() else 1)
    parts = [order[at : at + size] for at in range(0, len(order) - size + 1, size)]
    chance.shuffle(parts)
    yield from parts


def loss_of(model: Any, pairs: list[Pair], smoothing: float) -> torch.Tensor:
    """Mean cross-entropy of the targets' tokens in nats."""
    sources, labels = padded([s for s, _ in pairs], PAD), padded([t for _, t in pairs], -100)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(input_ids=sources, attention_mask=(sources != PAD).long(), labels=labels, use_cache=False)
    logits = found.logits.float().flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, labels.flatten(), ignore_index=-100, label_smoothing=smoothing)


@torch.inference_mode()
def write_summaries(model: Any, tokenizer: Any, texts: list[str], beams: int = 1) -> list[str]:
    """Summaries in the order of ``texts``: greedy or by beam search, at most TARGET_TOKENS tokens each."""
    model.eval()
    sources = [pair[0] for pair in encode(tokenizer, [{"text": text, "summary": ""} for text in texts])]
    order = sorted(range(len(texts)), key=lambda at: len(sources[at]))
    written = [""] * len(texts)
    for begin in range(0, len(order), BATCH):
        part = order[begin : begin + BATCH]
        ids = padded([sources[at] for at in part], PAD)
        found = model.generate(
            input_ids=ids,
            attention_mask=(ids != PAD).long(),
            max_new_tokens=TARGET_TOKENS,
            num_beams=beams,
            do_sample=False,
        )
        for at, text in zip(part, tokenizer.batch_decode(found, skip_special_tokens=True), strict=True):
            written[at] = text
    return written


def rouge(written: list[str], rows: list[Row]) -> dict[str, np.ndarray]:
    """F1 of each row in percent by measure, of the package rouge-score, without stemming."""
    scorer = RougeScorer(list(MEASURES), use_stemmer=False)
    scores = [scorer.score(row["summary"], text) for text, row in zip(written, rows, strict=True)]
    return {measure: np.array([100 * score[measure].fmeasure for score in scores]) for measure in MEASURES}


def interval(scores: np.ndarray) -> dict[str, float]:
    """The mean and its 95 % interval by 2,000 bootstrap samples."""
    picks = np.random.default_rng(1).integers(0, len(scores), (2000, len(scores)))
    low, high = np.percentile(scores[picks].mean(axis=1), (2.5, 97.5))
    return {"mean": round(float(scores.mean()), 2), "low": round(float(low), 2), "high": round(float(high), 2)}


def lead_sentence(text: str) -> str:
    """The text's first sentence."""
    return re.split(r"(?<=[.!?])\s+(?=[A-Z])", text, maxsplit=1)[0]


def averaged(model: Any, seconds: float) -> float:
    """Average the gradients over the processes, and the time they took, so that all go by one clock."""
    weights = list(model.parameters())
    flat = torch.cat([weight.grad.flatten() for weight in weights] + [torch.tensor([seconds])])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for weight, part in zip(weights, flat[:-1].split([weight.numel() for weight in weights]), strict=True):
        weight.grad.copy_(part.view_as(weight))
    return float(flat[-1])


def save_student(model: Any, tokenizer: Any, folder: Path) -> None:
    """The checkpoint in float16; its configuration says float32, so that transformers computes in that."""
    copy = T5ForConditionalGeneration(model.config)
    copy.load_state_dict(model.state_dict())
    copy.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def train(rank: int, processes: int, data: Path, out: Path, minutes: float) -> None:
    """Train, or go on with it, and leave the best student in ``out/student``; one of ``processes``, a thread each."""
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    logging.set_verbosity_error()  # texts longer than what the tokenizer names are cut here
    dist.init_process_group("gloo", init_method=f"file://{out.resolve()}/meet", rank=rank, world_size=processes)
    rows = {name: read_rows(data, name) for name in ("train", "validation", "more")}
    if rank == 0 and not (out / "tokenizer/tokenizer.json").is_file():
        texts = (row[field] for row in rows["train"] for field in ("text", "summary"))
        make_tokenizer(texts).save_pretrained(out / "tokenizer")
    dist.barrier()
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    pairs = {name: encode(tokenizer, these) for name, these in rows.items()}
    pairs["train"] += pairs.pop("more")
    judged = rows["validation"][:VALIDATION_ROWS]

    torch.manual_seed(1)
    config = T5Config(
        **SHAPE, feed_forward_proj="relu", dropout_rate=DROPOUT, decoder_start_token_id=PAD, tie_word_embeddings=True
    )
    config._attn_implementation = "eager"  # a fifth faster here than torch's own, whose masks go the long way
    model = T5ForConditionalGeneration(config)
    for module in model.modules():
        if isinstance(module, T5Attention):
            module.dropout = 0.0
    wire(model)
    embeddings = list(model.shared.parameters())
    others = [p for p in model.parameters() if p is not embeddings[0]]
    optimizer = torch.optim.AdamW(
        [{"params": embeddings, "lr": EMBEDDING_RATE}, {"params": others, "lr": RATE}],
        betas=(0.9, 0.98), weight_decay=0.01, fused=True,
    )  # fmt: skip
    step, spent, best, epoch = 0, 0.0, 0.0, 0
    saved = out / "checkpoint.pt"
    if saved.is_file():
        state = torch.load(saved)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent, best, epoch = state["step"], state["spent"], state["best"], state["epoch"]
    if rank == 0:
        print(f"{sum(p.numel() for p in model.parameters()):,} weights, {len(pairs['train']):,} pairs", flush=True)

    def progress() -> float:
        return min(1.0, max(step / STEPS, spent / (60 * minutes)))

    def evaluate() -> None:
        nonlocal best
        model.eval()
        with torch.inference_mode():
            parts = [pairs["validation"][at : at + BATCH] for at in range(0, len(pairs["validation"]), BATCH)]
            loss = float(np.mean([float(loss_of(model, part, 0.0)) for part in parts]))
        score = float(
            rouge(write_summaries(model, tokenizer, [row["text"] for row in judged]), judged)["rougeL"].mean()
        )
        print(f"step {step}: validation loss {loss:.3f}, ROUGE-L {score:.2f}", flush=True)
        if score > best:
            best = score
            save_student(model, tokenizer, out / "student")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "spent": spent}
        torch.save(state | {"best": best, "epoch": epoch}, saved.with_suffix(".new"))
        saved.with_suffix(".new").replace(saved)

    evaluated, shown, losses, tokens = progress(), time.monotonic(), [], 0
    while progress() < 1:
        epoch += 1
        for batch in batches(pairs["train"], random.Random(epoch)):
            if progress() >= 1:
                break
            began = time.monotonic()
            scale = min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * progress()))
            for group, rate in zip(optimizer.param_groups, (EMBEDDING_RATE, RATE), strict=True):
                group["lr"] = rate * scale
            model.train()
            loss = loss_of(model, batch[rank::processes], SMOOTHING)
            loss.backward()
            spent += averaged(model, time.monotonic() - began)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            losses.append(loss.item())
            tokens += sum(len(source) + len(target) for source, target in batch)
            if step % 50 == 0 and rank == 0:
                speed = tokens / (time.monotonic() - shown)
                done = f"{step} ({100 * progress():.1f} %, epoch {epoch})"
                print(f"{done} loss {np.mean(losses):.3f}, {speed:.0f} tokens/s", flush=True)
                losses, tokens, shown = [], 0, time.monotonic()
            if progress() - evaluated >= 0.1:
                evaluated = progress()
                if rank == 0:
                    evaluate()
                dist.barrier()
    if rank == 0:
        evaluate()
    dist.barrier()
    dist.destroy_process_group()


def figures_of(student: Path, data: Path, beams: Iterable[int]) -> dict[str, Any]:
    """ROUGE on the test split: the student's, and of two methods that take what stands first."""
    rows = read_rows(data, "test")
    texts = [row["text"] for row in rows]
    tokenizer = AutoTokenizer.from_pretrained(student)
    model = T5ForConditionalGeneration.from_pretrained(student, dtype=torch.float32)
    written = {
        "lead sentence": [lead_sentence(text) for text in texts],
        "first 8 words": [" ".join(text.split()[:8]) for text in texts],
    }
    for count in beams:
        written["student, greedy" if count == 1 else f"student, {count} beams"] = write_summaries(
            model, tokenizer, texts, count
        )
    scores = {
        name: {measure: interval(values) for measure, values in rouge(summaries, rows).items()}
        | {"words": round(sum(len(text.split()) for text in summaries) / len(rows), 1)}
        for name, summaries in written.items()
    }
    return {"split": "test", "rows": len(rows), "weights": sum(p.numel() for p in model.parameters()), "rouge": scores}


def main() -> None:
    """Reads the command line; trains or evaluates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the splits; the shipped ones for --evaluate", default=HERE)
    parser.add_argument("--out", type=Path, help="folder for checkpoints and the student")
    parser.add_argument("--minutes", type=float, default=math.inf, help="time after which training has to be done")
    parser.add_argument("--processes", type=int, default=2, help="to train with; %(default)s is what was used")
    parser.add_argument("--evaluate", action="store_true", help="evaluate --student and write figures.json")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4], help="widths to evaluate; 1 is greedy")
    parser.add_argument("--student", type=Path, default=HERE / "student")
    given = parser.parse_args()
    if given.evaluate:
        told = json.dumps(figures_of(given.student, given.data, given.beams), indent=2) + "\n"
        ((given.out or HERE) / "figures.json").write_text(told, encoding="utf-8")
        sys.stdout.write(told)
    elif given.out is None:
        parser.error("--out is needed to train")
    else:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "meet").unlink(missing_ok=True)
        torch.multiprocessing.spawn(
            train, (given.processes, given.data, given.out, given.minutes), nprocs=given.processes
        )


if __name__ == "__main__":
    main()
