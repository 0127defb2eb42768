"""Token vectors into the decoder and scores of the next token out of it.

Two kinds behind one interface: our own table, trained with everything else, and that of a
pretrained language model, which stays as it is but for three rows past its vocabulary: padding,
`<USER_EMB>` and `<EOS>`. `PretrainedWords.plain` makes the second kind into the first, so that
whatever reads a trained model knows one kind only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_NEW = 3  # rows past a vocabulary: pad, <USER_EMB>, <EOS>; see `vocabulary.special_ids`


class OwnWords(nn.Embedding):
    """V token vectors of width D; without `tied`, as many others to score the next token with."""

    def __init__(self, vocabulary: int, hidden: int, *, tied: bool = True) -> None:
        super().__init__(vocabulary, hidden)
        nn.init.normal_(self.weight, std=hidden**-0.5)  # small: they score the next token too
        self.head = None if tied else nn.Parameter(self.weight.detach().clone())

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token scores [...,V] of hidden states [...,D]."""
        return F.linear(hidden, self.weight if self.head is None else self.head)


class PretrainedWords(nn.Module):
    """A frozen table and three trainable rows behind it, in and out."""

    def __init__(self, tokens: Tensor, head: Tensor | None) -> None:
        """`tokens` float32 [K,D]; `head` [K,D] scores the next token, None where `tokens` do."""
        super().__init__()
        self.known = nn.Parameter(tokens, requires_grad=False)
        self.known_head = None if head is None else nn.Parameter(head, requires_grad=False)
        self.new = _rows_like(tokens)
        self.new_head = None if head is None else _rows_like(head)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids int64 [...], below K + 3 -> [...,D]."""
        first = len(self.known)
        known = F.embedding(ids.clamp(max=first - 1), self.known)
        new = F.embedding((ids - first).clamp(min=0), self.new)
        return torch.where((ids < first).unsqueeze(-1), known, new)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token scores [...,K+3] of hidden states [...,D]."""
        known = self.known if self.known_head is None else self.known_head
        new = self.new if self.new_head is None else self.new_head
        return torch.cat((F.linear(hidden, known), F.linear(hidden, new)), dim=-1)

    @torch.no_grad()
    def plain(self) -> OwnWords:
        """One table, or two, of K + 3 rows with the same vectors and scores; all frozen."""
        with torch.device("meta"):  # no memory and no random numbers for what is replaced
            words = OwnWords(len(self.known) + _NEW, self.known.shape[1], tied=True)
        words.weight = nn.Parameter(torch.cat((self.known, self.new)))
        if self.known_head is not None and self.new_head is not None:
            words.head = nn.Parameter(torch.cat((self.known_head, self.new_head)))
        return words.requires_grad_(False)


def _rows_like(table: Tensor) -> nn.Parameter:
    """New rows as large as the known ones, so that the decoder finds them nothing special."""
    return nn.Parameter(torch.randn(_NEW, table.shape[1]) * table.std())
