"""Text as a language model sees it: a vocabulary, and contiguous blocks of tokens, each with the one that follows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tenfold.data.split import Array, Split
from tenfold.errors import WorkloadError

PARTS = ("train", "valid", "test")
SHARES = (0.8, 0.1)
"""Of a text that comes in one piece, for train and for valid with confirm; the rest is test."""
MOST_CHARACTERS = 512
"""Of a vocabulary of characters: rarer ones are `UNKNOWN`."""
UNKNOWN = "\N{REPLACEMENT CHARACTER}"
GROUP_TOKENS = 1024
"""Of a contiguous stretch of text, whose blocks are not independent."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Tokens, and how a text is made of them."""

    labels: tuple[str, ...]
    """What each token stands for."""
    encode: Callable[[str], Array]
    """A text to the numbers of its tokens, int64 (n,)."""


def read_text(path: Path) -> tuple[str, str, str]:
    """Train, valid and test of a text file, or of a folder.

    A folder with train.txt, valid.txt and test.txt is taken as it is divided; of any other all .txt files follow one another by their
    names. What comes in one piece is cut, test being its end.

    Raises:
        WorkloadError: there is no text, or it is not UTF-8.
    """
    if path.is_dir() and all((path / f"{part}.txt").is_file() for part in PARTS):
        train, valid, test = (_read(path / f"{part}.txt") for part in PARTS)
        return train, valid, test
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise WorkloadError(f"{path} has no .txt file: give a text file, or a folder of them")
    whole = "\n".join(map(_read, files))
    first, second = (round(len(whole) * share) for share in (SHARES[0], sum(SHARES)))
    return whole[:first], whole[first:second], whole[second:]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise WorkloadError(f"{path} is not UTF-8 (byte {error.start:,}): convert it, with iconv for example") from error
    except OSError as error:
        raise WorkloadError(f"{path} cannot be read ({error.strerror}): give a text file, or a folder of .txt files") from error


def characters(text: str) -> Vocabulary:
    """The characters of a text, by their code points, after `UNKNOWN`, which stands for all others."""
    common = [c for c, _ in Counter(text).most_common(MOST_CHARACTERS - 1) if c != UNKNOWN]
    known = _code_points("".join(sorted(common)))

    def encode(text: str) -> Array:
        points = _code_points(text)
        at = np.searchsorted(known, points).clip(max=max(len(known) - 1, 0))
        return np.where(known[at] == points, at + 1, 0).astype(np.int64) if len(known) else np.zeros(len(points), np.int64)

    return Vocabulary(labels=(UNKNOWN, *sorted(common)), encode=encode)


def _code_points(text: str) -> Array:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def byte_pairs(text: str, size: int) -> Vocabulary:
    """Pairs of bytes that are often together, merged until there are `size` tokens (Sennrich et al. 2016, arXiv:1508.07909); any text has its tokens.

    Raises:
        WorkloadError: `tokenizers` is not installed.
    """
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError as error:
        raise WorkloadError("byte pairs need the package tokenizers: pip install 'tenfold[text]'") from error
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    count = tokenizer.get_vocab_size()

    def encode(text: str) -> Array:
        lines = tokenizer.encode_batch(text.splitlines(keepends=True), add_special_tokens=False)
        return np.concatenate([np.array(line.ids, np.int64) for line in lines] or [np.zeros(0, np.int64)])

    return Vocabulary(labels=tuple(tokenizer.decode([i]) for i in range(count)), encode=encode)


def blocks(tokens: Array, length: int, *, stride: int | None = None) -> Split:
    """Blocks of `length` tokens as inputs, int64 (n, length), and as targets what follows each of them.

    Args:
        tokens: (n,) of a contiguous text.
        stride: tokens from the beginning of one block to that of the next; None: they follow one another, in groups of `GROUP_TOKENS`.
    """
    starts = np.arange(0, len(tokens) - length, stride or length)
    windows = tokens[starts[:, None] + np.arange(length + 1)]
    groups = starts // max(GROUP_TOKENS, length) if stride is None else None
    return Split(inputs=(np.ascontiguousarray(windows[:, :-1]),), targets=np.ascontiguousarray(windows[:, 1:]), groups=groups)
