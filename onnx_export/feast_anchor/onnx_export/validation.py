"""How good a model is on users whose examples it never took a step on.

Validation users belong to training: their events shape tokenizer, topics and questions. They only
choose which weights to keep, so what is reported of a model needs users of its own (`held_out`).
Who they are depends on the user's key alone: not on the seed, the order or the other users.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .batches import Batch
from .corpus import Corpus
from .inputs import Ints
from .model import Anchor
from .objective import contrasted, embed
from .settings import TrainConfig


@dataclass(frozen=True)
class Scores:
    """Retrieval of the right answer among the question's own answers, and the loss.

    `matched` chooses the weights: given two users who answer a question differently and their two
    answers, how often the model gives each user the right one. Chance is .5 however rare an
    answer is; for a yes-no question it is the AUC of "closer to yes than to no".
    """

    loss: float  # contrastive
    matched: float  # 0 to 1
    above_chance: float  # share of answers that are nearest, minus what guessing one would give
    pairs: int  # (history, question) pairs with an answer


def split(corpus: Corpus, share: float) -> tuple[Ints, Ints]:
    """Snapshots to train on and those of the validation users, about `share` of all users.

    All and none when either part would have no example, as with a handful of users.
    """
    chosen = np.array([_fraction(user) < share for user in corpus.events.users], dtype=bool)
    held = chosen[corpus.user]
    asked = (corpus.labels >= 0).any(axis=1)
    if not (asked & held).any() or not (asked & ~held).any():
        return np.arange(len(held)), np.arange(0)
    return np.flatnonzero(~held), np.flatnonzero(held)


@torch.no_grad()
def evaluate(model: Anchor, batches: Sequence[Batch], config: TrainConfig) -> Scores:
    """Scores over all pairs of some batches; answers nobody in a batch gives are not looked at.

    The loss is the contrastive one of the settings, which also bound how many histories are in
    memory at once (`chunk`).
    """
    losses, counts = [], torch.zeros(5, dtype=torch.float64)
    for batch in batches:
        users, answers = embed(model, batch, config.chunk)
        losses.append(float(contrasted(users, answers, batch, config)))
        similarity = users @ answers.T  # [B,Q,A]
        parts = (*_matched(similarity, batch.target), *_nearest(similarity, batch))
        counts += torch.stack([part.double().cpu() for part in parts])
    right, couples, nearest, guessed, pairs = counts.tolist()
    return Scores(
        loss=float(np.mean(losses)),
        matched=right / couples if couples else 0.5,
        above_chance=(nearest - guessed) / max(1.0, pairs),
        pairs=int(pairs),
    )


def _matched(similarity: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """How many couples of users the model tells apart (a tie is half), and of how many."""
    asked = target >= 0  # [B,Q]
    others = target.clamp(min=0).T.expand(len(target), -1, -1)  # [B,Q,B]: answer of user c
    cross = similarity.gather(2, others)  # [B,Q,B]: user b with the answer of user c
    own = cross.diagonal(dim1=0, dim2=2).T  # [B,Q]
    swapped = cross + cross.transpose(0, 2)  # [B,Q,B]
    gain = own.unsqueeze(2) + own.T - swapped  # [B,Q,B]
    couple = asked.unsqueeze(2) & asked.T & (target.unsqueeze(2) != target.T)
    right = (gain > 0).double() + 0.5 * (gain == 0).double()
    return (right * couple).sum(), couple.sum()


def _nearest(similarity: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """How many pairs have the right answer nearest of their own, how many by guessing, of all."""
    asked = batch.target >= 0
    nearest = similarity.masked_fill(~batch.same, -torch.inf).argmax(-1)  # [B,Q]
    guess = 1 / batch.same.sum(-1).clamp(min=1)  # [Q]
    return ((nearest == batch.target) & asked).sum(), (guess * asked).sum(), asked.sum()


def _fraction(user: str) -> float:
    """A number in [0, 1) that depends on the user's key alone."""
    digest = hashlib.sha256(f"validation:{user}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
