"""Prefix and suffix graphs of one bundle on the device that runs them.

The rule: the state stays where it was made. On CPU it is NumPy arrays; on a GPU it is ONNX Runtime
values in the GPU's memory, bound as outputs of the prefix and as inputs of the suffix, and only
vectors come back.

A GPU is used where its driver answers and ONNX Runtime's CUDA provider starts, at float32 without
TF32. Where a GPU is there and the provider does not start, a warning says so and what to install.
Int8 bundles run on the CPU: the CUDA provider has no product for their numbers.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from feast_anchor.onnx_export.bundle import Bundle, empty_past
from feast_anchor.onnx_export.errors import BundleError, SpecError
from feast_anchor.onnx_export.inputs import Floats

from . import packing

if TYPE_CHECKING:
    import onnxruntime as ort

Device = Literal["auto", "cpu", "cuda"]
State = Mapping[str, Any]  # by the manifest's names: arrays, or values on the device
Arrays = Mapping[str, np.ndarray[Any, Any]]

_log = logging.getLogger(__name__)


class Graphs:
    """The prefix and suffix of one bundle. `device` is "cpu" or "cuda", whichever runs them."""

    def __init__(self, bundle: Bundle, device: Device = "auto") -> None:
        """Raises `SpecError` for "cuda" where there is none, `BundleError` where it fails."""
        self._names = list(bundle.manifest.state)
        self.device, (self.prefix, self.suffix) = _start(bundle, device)
        self.policy = packing.CUDA if self.device == "cuda" else packing.CPU
        self._bound = self.device == "cuda"
        self._fresh = empty_past(self.prefix, 1)

    def read(self, feed: Arrays, past: State | None = None) -> State:
        """The state of padded histories, inputs as in `bundle`; `past` is what it continues."""
        before = self._begin(len(feed["modality"])) if past is None else _past(past)
        if not self._bound:
            found = self.prefix.run(self._names, {**feed, **before})
            return dict(zip(self._names, found, strict=True))
        return self._run_bound(self.prefix, {**feed, **before}, self._names, keep=True)

    def ask(self, feed: Arrays, state: State) -> Floats:
        """Vectors of blocks that ask a state: float32 [B, blocks, dim]."""
        if not self._bound:
            (vectors,) = self.suffix.run(["embedding"], {**feed, **state})
        else:
            vectors = self._run_bound(self.suffix, {**feed, **state}, ["embedding"], keep=False)[
                "embedding"
            ]
        out: Floats = vectors
        return out

    @property
    def state_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Shapes of one history's state by name, None for the number of events.

        {} for a bundle whose prefix cannot be continued.
        """
        return {
            name.removeprefix("past_"): tuple(size or None for size in none.shape)
            for name, none in self._fresh.items()
        }

    def _begin(self, histories: int) -> dict[str, Any]:
        return {name: np.repeat(none, histories, axis=0) for name, none in self._fresh.items()}

    def _run_bound(
        self, session: ort.InferenceSession, feed: State, names: list[str], *, keep: bool
    ) -> dict[str, Any]:
        """Run on the device; `keep` leaves the results in its memory."""
        binding = session.io_binding()
        for name, value in feed.items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
            else:
                binding.bind_ortvalue_input(name, value)
        for name in names:
            binding.bind_output(name, self.device if keep else "cpu")
        session.run_with_iobinding(binding)
        values = binding.get_outputs()
        return {
            name: value if keep else value.numpy()
            for name, value in zip(names, values, strict=True)
        }


def _past(state: State) -> dict[str, Any]:
    return {f"past_{name}": value for name, value in state.items()}


def _start(bundle: Bundle, device: Device) -> tuple[Literal["cpu", "cuda"], list[Any]]:
    """Sessions of prefix and suffix, and the device that they run on."""
    wanted: Literal["cpu", "cuda"] = "cpu"
    if device not in get_args(Device):
        raise SpecError(f"device={device!r}, expected one of {list(get_args(Device))}")
    in_float = bundle.manifest.dtype == "float32"
    if device == "cuda" and not in_float:
        raise SpecError(
            f"device='cuda', but bundle {bundle.manifest.name!r} is {bundle.manifest.dtype}, which "
            "runs on CPU alone; take the float32 bundle, or device='auto'"
        )
    if device == "cuda" and not has_gpu():
        raise SpecError(
            "device='cuda', but no NVIDIA driver answers on this machine; install it, or take "
            "device='auto'"
        )
    if device == "cuda" or (device == "auto" and in_float and has_gpu()):
        wanted = "cuda"
    try:
        return wanted, [bundle.session(graph, wanted) for graph in ("prefix", "suffix")]
    except BundleError as error:
        if device != "auto" or wanted == "cpu":
            raise
        _log.warning("Scoring on the CPU although there is a GPU: %s", error)
        return "cpu", [bundle.session(graph) for graph in ("prefix", "suffix")]


@cache
def has_gpu() -> bool:
    """Whether an NVIDIA driver answers and counts at least one GPU.

    Asked before ONNX Runtime is: it prints errors on machines without one.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return (
        driver.cuInit(0) == 0
        and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
        and count.value > 0
    )
