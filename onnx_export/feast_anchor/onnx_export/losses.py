"""The training objective: contrast a user with answers, and write the answer out.

`contrastive` is InfoNCE of user vectors against answer texts, with two sorts of negatives told
apart. Answers of the *same* question ("yes, produce", "no, produce") are negatives by
construction. Answers of *other* questions may happen to be true of this user, so one that is
already more similar than the right answer plus a margin is taken for true and left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.07
MARGIN = 0.1
WITHIN = 0.7  # weight of the negatives of the same question


def contrastive(users: Tensor, answers: Tensor, target: Tensor, same: Tensor) -> Tensor:
    """Mean over all (history, question) pairs that have an answer.

    Args:
        users: vectors of length 1 [B, Q, N].
        answers: vectors of the batch's distinct answer texts, of length 1 [A, N].
        target: right answer of each pair, int64 [B, Q], -1 for none.
        same: bool [Q, A], whether the answer is one of the question's own.

    Returns:
        `WITHIN` * InfoNCE over the question's own answers + the rest * InfoNCE over all answers
        and over users who answer the question differently.
    """
    asked = target >= 0  # [B,Q]
    right = target.clamp(min=0).unsqueeze(-1)  # [B,Q,1]
    similarity = users @ answers.T  # [B,Q,A]
    positive = similarity.gather(2, right)  # [B,Q,1]
    other = torch.arange(answers.shape[0]) != right  # [B,Q,A]
    looks_true = (similarity > positive + MARGIN) & ~same
    by_question = users.transpose(0, 1)  # [Q,B,N]
    between = (by_question @ by_question.transpose(1, 2)).transpose(0, 1)  # [B,Q,B]
    differs = (target.unsqueeze(-1) != target.T) & asked.T  # [B,Q,B]: pair b,q against user c
    wide = torch.cat(
        (
            positive,
            similarity.masked_fill(~other | looks_true, -torch.inf),
            between.masked_fill(~differs, -torch.inf),
        ),
        dim=-1,
    )
    near = torch.cat((positive, similarity.masked_fill(~other | ~same, -torch.inf)), dim=-1)
    loss = WITHIN * _nll(near) + (1 - WITHIN) * _nll(wide)  # [B,Q]
    return (loss * asked).sum() / asked.sum().clamp(min=1)


def next_token(logits: Tensor, tokens: Tensor, pad: int) -> Tensor:
    """Mean cross-entropy of the answer's tokens: logits [..., L, V], tokens int64 [..., L]."""
    return F.cross_entropy(logits.flatten(0, -2), tokens.flatten(), ignore_index=pad)


def _nll(scores: Tensor) -> Tensor:
    """Negative log-probability of the first of the scores [..., n]."""
    scaled = scores / TEMPERATURE
    return scaled.logsumexp(-1) - scaled[..., 0]
