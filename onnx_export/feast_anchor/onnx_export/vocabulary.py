"""From words to ids: the decoder's own vocabulary, and the two tokenizers a model reads with.

The decoder reads questions and answers with a byte-level BPE vocabulary trained on the data at
hand, or, when it is a pretrained one, with its own. So does the text encoder read events, questions
and answers; where neither is pretrained both read with the same vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from .inputs import Ints
from .manifest import SpecialIds
from .text import answer_ids, tokenize
from .text_encoder import TextEncoder

_AT_ONCE = 256  # texts encoded together
_PUNCTUATION = r"[!-*,-/:-@\[-`{-~]"


def train_tokenizer(texts: Sequence[str], vocab: int) -> Tokenizer:
    """Byte-level BPE over the given texts: lower-cased, without ASCII punctuation but "+".

    No text has unknown tokens. Punctuation goes because it makes questions longer, and time to
    train with them, without making them say more.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(_PUNCTUATION), " "),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(sorted(set(texts)), trainer)
    return tokenizer


def special_ids(tokenizer: Tokenizer) -> SpecialIds:
    """Ids just past the vocabulary: no text can produce them."""
    size = 1 + max(tokenizer.get_vocab().values())  # pretrained vocabularies may have gaps
    return SpecialIds(pad=size, user_emb=size + 1, eos=size + 2, first_prompt=size + 3)


@dataclass(frozen=True)
class Words:
    """How a model reads words, for training: tokenizers, their special ids and their limits."""

    tokenizer: Tokenizer  # of the decoder
    special: SpecialIds
    text_tokenizer: Tokenizer  # of the text encoder
    texts: TextEncoder
    max_text_tokens: int
    max_query_tokens: int
    query_tokens: bool  # whether the decoder reads questions word by word

    def raw(self, texts: Sequence[str]) -> torch.Tensor:
        """What `TextEncoder.raw` makes of some texts, a few hundred at a time: [N, ...]."""
        ids = tokenize(self.text_tokenizer, texts, self.max_text_tokens, self.texts.pad)
        lengths = (ids != self.texts.pad).sum(1)
        order = np.argsort(lengths, kind="stable")  # texts of one length together: less padding
        parts = []
        for start in range(0, len(order), _AT_ONCE):
            some = order[start : start + _AT_ONCE]
            width = max(1, int(lengths[some].max()))
            parts.append(self.texts.raw(torch.from_numpy(ids[some, :width])))
        return _stack(parts, self.texts.pad)[torch.from_numpy(np.argsort(order))]

    def queries(self, texts: Sequence[str]) -> tuple[Ints, Ints]:
        """Ids [N, L] of questions, cut at the limit, and their lengths; none if not read at all."""
        limit = self.max_query_tokens if self.query_tokens else 0
        encodings = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return _padded([encoding.ids[:limit] for encoding in encodings], self.special.pad)

    def answers(self, texts: Sequence[str]) -> tuple[Ints, Ints]:
        """Ids [N, L] of answers, each ending in `<EOS>`, and their lengths."""
        return _padded(answer_ids(self.tokenizer, texts, self.special.eos), self.special.pad)


def _stack(parts: Sequence[torch.Tensor], pad: int) -> torch.Tensor:
    """Rows of all parts under each other; ids of different widths are padded on the right."""
    if parts[0].is_floating_point():
        return torch.cat(list(parts))
    width = max(part.shape[1] for part in parts)
    return torch.cat(
        [torch.nn.functional.pad(part, (0, width - part.shape[1]), value=pad) for part in parts]
    )


def _padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Any, Ints]:
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    ids = np.full((len(rows), int(lengths.max(initial=1))), pad, dtype=np.int64)
    for target, row in zip(ids, rows, strict=True):
        target[: len(row)] = row
    return ids, lengths
