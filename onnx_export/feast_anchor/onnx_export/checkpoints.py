"""Checkpoints of a training run: one safetensors file, replaced as a whole.

The rule: a checkpoint is taken up by the run that wrote it and by no other. It carries that run's
identity (settings, data, library versions); another identity is an error that says what differs,
because going on would give weights no configuration describes, and starting anew would throw
away somebody's hours without a word.

Tensors are the weights (`model.`) but for frozen ones, which the identity names, the best weights
so far (`best.`), AdamW's state (`optimiser.<parameter>.`) and torch's random state (`random`).
Everything else is JSON in the file's metadata. Batches need no state: each is a function of its
number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .errors import SpecError

Tensors = dict[str, Tensor]


def write_checkpoint(
    path: Path, identity: Mapping[str, Any], tensors: Tensors, record: Mapping[str, Any]
) -> None:
    """Write a checkpoint; a crash leaves the previous one or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    metadata = {"identity": json.dumps(identity, sort_keys=True), "record": json.dumps(record)}
    save_file({name: t.contiguous() for name, t in tensors.items()}, part, metadata)
    os.replace(part, path)


def read_checkpoint(
    path: Path, identity: Mapping[str, Any]
) -> tuple[Tensors, dict[str, Any]] | None:
    """The tensors (on the CPU) and the record of a checkpoint, None when there is none.

    Raises `SpecError` when it cannot be read or belongs to another run.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found, record = json.loads(metadata["identity"]), json.loads(metadata["record"])
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise SpecError(
            f"the checkpoint {path} cannot be read ({error}); delete it to start anew"
        ) from error
    differences = _differences(found, json.loads(json.dumps(identity)), "")
    if differences:
        raise SpecError(
            f"the checkpoint {path} is of another training run: {'; '.join(differences[:5])}. "
            "Give the same settings and data to go on with it, or delete it to start anew"
        )
    return tensors, record


def pack(model: nn.Module, optimiser: torch.optim.Optimizer) -> Tensors:
    """Weights, optimiser state and torch's random state as named tensors."""
    state = optimiser.state_dict()["state"]
    return {
        "random": torch.get_rng_state(),
        **{f"model.{name}": tensor for name, tensor in trained(model).items()},
        **{f"optimiser.{i}.{key}": t for i, of in state.items() for key, t in of.items()},
    }


def unpack(tensors: Tensors, model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Undo `pack`: weights, optimiser and torch's generator are as they were."""
    load(model, under("model.", tensors))
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in under("optimiser.", tensors).items():
        parameter, _, key = name.partition(".")
        state.setdefault(int(parameter), {})[key] = tensor
    groups = optimiser.state_dict()["param_groups"]  # settings, which the identity vouches for
    optimiser.load_state_dict({"state": state, "param_groups": groups})
    torch.set_rng_state(tensors["random"])


def trained(model: nn.Module) -> Tensors:
    """The state of a model without its frozen parameters, which never change."""
    frozen = _frozen(model)
    return {name: t for name, t in model.state_dict().items() if name not in frozen}


def load(model: nn.Module, tensors: Tensors) -> None:
    """Undo `trained`: every tensor finds its place, and nothing but frozen ones stays."""
    state, frozen = model.state_dict(), _frozen(model)
    model.load_state_dict({name: state[name] for name in frozen} | tensors)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that an optimiser may change."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _frozen(model: nn.Module) -> set[str]:
    every = model.named_parameters(remove_duplicate=False)
    return {name for name, parameter in every if not parameter.requires_grad}


def under(prefix: str, tensors: Tensors) -> Tensors:
    """The tensors whose names begin with `prefix`, without it."""
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def _differences(then: Any, now: Any, key: str) -> list[str]:
    """Sentences on what two JSON values differ in."""
    if isinstance(then, dict) and isinstance(now, dict):
        names = sorted(then.keys() | now.keys())
        return [s for n in names for s in _differences(then.get(n), now.get(n), f"{key}.{n}")]
    return [] if then == now else [f"{key.lstrip('.')} is {now!r} now and was {then!r}"]
