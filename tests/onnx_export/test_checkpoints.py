from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from feast_anchor.onnx_export import checkpoints
from feast_anchor.onnx_export.checkpoints import pack, read_checkpoint, unpack, write_checkpoint
from feast_anchor.onnx_export.errors import SpecError

IDENTITY = {"config": {"steps": 3, "model": {"layers": 2}}, "data": {"user": "ab"}}


def trained(seed: int, steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A layer after some steps of AdamW."""
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        step(model, optimiser)
    return model, optimiser


def step(model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    optimiser.zero_grad()
    model(torch.rand(4, 3)).square().sum().backward()
    optimiser.step()


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    """Weights, moments and random numbers go on as if nothing had happened; so do floats."""
    path = tmp_path / "run.safetensors"
    model, optimiser = trained(0, 3)
    write_checkpoint(path, IDENTITY, pack(model, optimiser), {"losses": [0.1, 1e-17]})
    step(model, optimiser)
    other, second = trained(1, 0)
    found = read_checkpoint(path, IDENTITY)
    assert found is not None
    unpack(found[0], other, second)
    step(other, second)  # draws its input at random, too
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    assert found[1] == {"losses": [0.1, 1e-17]}


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    """A first run has nothing to go on with."""
    assert read_checkpoint(tmp_path / "none", IDENTITY) is None


def test_another_run_is_named(tmp_path: Path) -> None:
    """What differs is said with its place, and what to do."""
    path = tmp_path / "run.safetensors"
    write_checkpoint(path, IDENTITY, {}, {})
    now = {"config": {"steps": 3, "model": {"layers": 4}}, "data": {"user": "ab"}, "seed": 1}
    with pytest.raises(SpecError) as caught:
        read_checkpoint(path, now)
    message = str(caught.value)
    assert "config.model.layers is 4 now and was 2; seed is 1 now and was None" in message
    assert "delete it to start anew" in message


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint at all"])
def test_a_damaged_checkpoint_says_so(tmp_path: Path, damage: bytes) -> None:
    """Bytes that are no checkpoint give an error that says what to do, not a stack trace."""
    path = tmp_path / "run.safetensors"
    path.write_bytes(damage)
    with pytest.raises(SpecError, match="cannot be read .* delete it to start anew"):
        read_checkpoint(path, IDENTITY)


def test_a_crash_while_writing_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The previous checkpoint is there until the next one is complete."""
    path = tmp_path / "run.safetensors"
    write_checkpoint(path, IDENTITY, {}, {"step": 1})

    def crash(tensors: object, part: Path, metadata: object) -> None:
        part.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoints, "save_file", crash)
    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(path, IDENTITY, {}, {"step": 2})
    found = read_checkpoint(path, IDENTITY)
    assert found is not None
    assert found[1] == {"step": 1}
