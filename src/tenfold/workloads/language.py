"""Language: the next token of a text, by a small transformer over characters; tinyshakespeare, or any UTF-8 text with --data.

`language_lstm` and `language_bytepair` are the same with another net, and with other tokens on the Brown corpus.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from tenfold.data.named import tinyshakespeare
from tenfold.data.split import Split
from tenfold.data.text import GROUP_TOKENS, Vocabulary, blocks, byte_pairs, characters, read_text
from tenfold.errors import WorkloadError
from tenfold.train.config import TrainConfig
from tenfold.workload import Workload

CONTEXT = 128
"""Tokens that a model sees at once, and predicts one after each of."""
OVERLAP = 4
"""Blocks of train that each token is in, so that it is learned in several contexts."""
BYTE_PAIRS = 1024
"""Tokens of a vocabulary of byte pairs."""
MARGIN = 0.01
"""Nats a token: a hundredth of the perplexity."""
HEAD = 32
"""Width of an attention head, at the least, where the net is as wide."""
WIDTH, DEPTH, DROPOUT = 192, 4, 0.1
"""Of the transformer."""
LSTM_WIDTH, LSTM_DEPTH, LSTM_DROPOUT = 384, 2, 0.2

UNUSED = "<unused>"
"""A token that never comes."""

Net = Literal["transformer", "lstm"]


class Transformer(nn.Module):
    """A decoder: attention looks back alone, each block normalises what it reads (pre-norm). Tokens (batch, context) to logits (batch, context, tokens)."""

    def __init__(self, tokens: int, context: int, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(tokens, width), nn.Embedding(context, width)
        self.drop = nn.Dropout(dropout)
        heads = next(h for h in range(max(1, width // HEAD), 0, -1) if width % h == 0)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True) for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, tokens, bias=False)
        self.register_buffer("places", torch.arange(context), persistent=False)
        self.register_buffer("later", torch.full((context, context), -math.inf).triu(1), persistent=False)
        for name, weight in self.named_parameters():  # as GPT-2 begins
            if weight.ndim > 1:
                closing = name.endswith(("out_proj.weight", "linear2.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * depth) if closing else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.drop(self.embed(tokens) + self.position(self.places))
        for layer in self.layers:
            x = layer(x, self.later, is_causal=True)
        logits: Tensor = self.head(self.norm(x))
        return logits


class LSTM(nn.Module):
    """Tokens (batch, context) to logits (batch, context, tokens)."""

    def __init__(self, tokens: int, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.lstm = nn.LSTM(width, width, depth, batch_first=True, dropout=dropout if depth > 1 else 0.0)
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(width, tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.drop(self.lstm(self.embed(tokens))[0]))
        return logits


def transformer(
    share: float = 1.0, *, tokens: int, context: int = CONTEXT, width: int = WIDTH, depth: int = DEPTH, dropout: float = DROPOUT
) -> nn.Module:
    """At a share of its width, in sixteens."""
    return Transformer(tokens, context, 16 * max(1, round(share * width / 16)), depth, dropout)


def lstm(share: float = 1.0, *, tokens: int, width: int = LSTM_WIDTH, depth: int = LSTM_DEPTH) -> nn.Module:
    """At a share of its width, in eights."""
    return LSTM(tokens, 8 * max(1, round(share * width / 8)), depth, LSTM_DROPOUT)


NETS: dict[Net, Callable[..., nn.Module]] = {"transformer": transformer, "lstm": lstm}
TRAINING: dict[Net, TrainConfig] = {
    "transformer": TrainConfig(epochs=3, batch_size=32, learning_rate=1e-3, weight_decay=0.1, warmup=0.1),
    "lstm": TrainConfig(epochs=3, batch_size=32, learning_rate=2e-3, weight_decay=0.01, warmup=0.1),
}


def workload(data: Path | None = None) -> Workload:
    """Characters by a transformer; of tinyshakespeare the last tenth is test."""
    return of_text(data or tinyshakespeare(), name="language")


def of_text(
    path: Path, *, name: str, net: Net = "transformer", bytepairs: int | None = None, context: int = CONTEXT,
    width: int | None = None, depth: int | None = None, training: TrainConfig | None = None,
) -> Workload:  # fmt: skip
    """The next token of a text.

    Args:
        path: a file, or a folder: see `tenfold.data.text.read_text`.
        bytepairs: tokens of a vocabulary of byte pairs; None: characters.
        context: tokens a block.
        width, depth: of the net; None: its own.

    Raises:
        WorkloadError: the text is not UTF-8, or too short.
    """
    parts = read_text(path)
    vocabulary = characters(parts[0]) if bytepairs is None else byte_pairs(parts[0], bytepairs)
    if len(vocabulary.labels) == context:  # else classes could not be told from positions
        vocabulary = dataclasses.replace(vocabulary, labels=(*vocabulary.labels, UNUSED))
    train, valid, confirm, test = _splits(parts, vocabulary, context, path)
    size = {k: v for k, v in (("width", width), ("depth", depth), ("context", context if net == "transformer" else None)) if v is not None}
    build = partial(NETS[net], tokens=len(vocabulary.labels), **size)
    return Workload(
        name=name,
        model=build,
        student=build,
        train=train,
        valid=valid,
        confirm=confirm,
        test=test,
        metric="log_loss",
        margin=MARGIN,
        labels=vocabulary.labels,
        read=partial(_new_blocks, vocabulary, context),
        training=training or TRAINING[net],
    )


def _new_blocks(vocabulary: Vocabulary, context: int, path: Path) -> Split:
    """More text, in blocks that do not overlap; the groups are known again by what they hold."""
    more = blocks(vocabulary.encode("".join(read_text(path))), context)
    assert more.groups is not None
    names = {g: hashlib.blake2b(more.inputs[0][more.groups == g].tobytes(), digest_size=8).hexdigest() for g in np.unique(more.groups)}
    return dataclasses.replace(more, groups=np.array([names[g] for g in more.groups]))


def _splits(parts: tuple[str, str, str], vocabulary: Vocabulary, context: int, path: Path) -> list[Split]:
    """train in blocks that overlap; valid, confirm (the second half of what is held out) and test in blocks that do not."""
    train, held, test = map(vocabulary.encode, parts)
    judged = {"valid": held[: len(held) // 2], "confirm": held[len(held) // 2 :], "test": test}
    least = 2 * max(GROUP_TOKENS, context) + 1  # an interval needs two groups
    if short := {name: len(tokens) for name, tokens in {"train": train, **judged}.items() if len(tokens) < least}:
        name = min(short, key=lambda n: short[n])
        raise WorkloadError(f"{path} is too short: {name} comes to {short[name]:,} tokens, and needs {least:,}: give a longer text")
    return [blocks(train, context, stride=max(1, context // OVERLAP)), *(blocks(tokens, context) for tokens in judged.values())]
