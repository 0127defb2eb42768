"""From a bundle to the same model with its decoder in int8. Needs the `onnx` package, no torch.

The rule: a quantised bundle is a bundle of its own, with its own digest and embedding spaces, and
it appears only if its vectors are near enough to those it was made of (`cosine_gate`). The
manifest says how near, and from which bundle it comes.

Only `prefix.onnx` and `suffix.onnx` change. Texts and answers are encoded once each, so speed
means little there, and weights and tuned prompts are copied: the same bundle quantised again gives
the same digest, also after a prompt was tuned.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from .bundle import Bundle, seal
from .cosine_gate import GATE, Closeness, measure
from .errors import BundleError
from .folders import replacing
from .int8_graph import decoder_to_int8
from .manifest import Manifest

QUANTISED = ("prefix", "suffix")

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Quantised:
    """The new bundle's manifest, and what came of it."""

    manifest: Manifest
    before: dict[str, int]  # bytes of each graph that was changed, its external data included
    after: dict[str, int]
    closeness: Closeness

    def sentences(self) -> list[str]:
        """What happened, for people."""
        near = self.closeness
        sizes = [
            f"{graph}.onnx {_megabytes(self.before[graph])} to {_megabytes(self.after[graph])}"
            for graph in self.before
        ]
        return [
            f"Quantised {self.manifest.name!r}: {', '.join(sizes)}.",
            f"Cosine to the fp32 vectors, {near.vectors:,} of made-up users: mean {near.mean:.6f}, "
            f"99 % at least {near.hundredth:.6f}, minimum {near.minimum:.6f} (two users and one "
            f"question: {near.between_users:.3f}).",
            f"Speed here, one thread: {near.speed:.2f} times fp32's."
            + ("" if near.speed > 1 else " Too small a model to gain: keep the fp32 bundle."),
        ]


def quantize_bundle(
    source: str | Path,
    out: str | Path,
    *,
    gate: float = GATE,
    users: int = 200,
    on_progress: Progress = lambda text, done: None,
) -> Quantised:
    """Write the bundle at `source` to `out` with its decoder in int8.

    Args:
        source: folder of an fp32 bundle; not changed.
        out: folder to make; a bundle already there is replaced when the new one is complete.
        gate: least cosine to the fp32 vectors of all but a hundredth of the vectors compared.
        users: made-up users whose vectors are compared.
        on_progress: told what is done next and which part of all is done, 0 to 1.

    Raises:
        BundleError: `source` is no fp32 bundle or has no decoder to quantise, `out` is the same
            folder or holds something that is not a bundle, or the vectors differ too much.
    """
    source, out = Path(source), Path(out)
    on_progress(f"verifying {source}", 0.0)
    bundle = Bundle.open(source)
    _check_request(bundle, out)
    with replacing(out) as folder:
        on_progress("quantising the decoder", 0.1)
        _copy_unchanged(bundle, folder)
        matrices = {graph: _write_int8(bundle, graph, folder) for graph in QUANTISED}
        draft = bundle.manifest.model_copy(update={"dtype": "int8 per token"})
        sealed = seal(folder, draft)
        on_progress(f"comparing vectors of {users} made-up users", 0.2)
        closeness = measure(Bundle.open(folder), bundle, users)
        record = _record(bundle, closeness, gate, users, matrices)
        _check_gate(closeness, gate)
        manifest = seal(folder, sealed.model_copy(update={"quantisation": record}))
    before, after = (_graph_bytes(one) for one in (bundle.manifest, manifest))
    return Quantised(manifest, before, after, closeness)


def _check_request(bundle: Bundle, out: Path) -> None:
    if bundle.manifest.dtype != "float32":
        raise BundleError(
            f"bundle {bundle.folder} is {bundle.manifest.dtype} already, expected float32; give "
            "the bundle that it was made of"
        )
    if out.resolve() == bundle.folder.resolve():
        raise BundleError(
            f"{out} is the bundle to quantise, expected another folder: a view that was declared "
            "with it would be without its model"
        )


def _check_gate(closeness: Closeness, gate: float) -> None:
    if not closeness.hundredth >= gate:
        raise BundleError(
            f"int8 moves this model's vectors too far: 1 % of {closeness.vectors:,} cosines to the "
            f"fp32 vectors are below {closeness.hundredth:.5f} (minimum {closeness.minimum:.5f}), "
            f"expected at least {gate}; stay with the fp32 bundle, or lower the gate if your own "
            "evaluation of the int8 vectors allows it"
        )


def _record(
    bundle: Bundle, closeness: Closeness, gate: float, users: int, matrices: dict[str, int]
) -> dict[str, Any]:
    """What the manifest keeps; not the speed, which is the machine's."""
    cosine = asdict(closeness)
    vectors, _ = cosine.pop("vectors"), cosine.pop("speed")
    return {
        "source": bundle.manifest.digest,
        "matrices": matrices,
        "gate": gate,
        "users": users,
        "vectors": vectors,
        "cosine": cosine,
    }


def _write_int8(bundle: Bundle, graph: str, folder: Path) -> int:
    """Write one graph's int8 form, with external data where it had any; returns its matrices."""
    name, data = _files(graph)
    model = onnx.load(bundle.folder / name)
    count = decoder_to_int8(model)
    if not count:
        raise BundleError(
            f"{bundle.folder / name} has no matrices of a decoder that can be told from others; "
            "export the bundle again with this feast-anchor"
        )
    external = data in bundle.manifest.files
    onnx.save_model(model, folder / name, save_as_external_data=external, location=data)
    return count


def _copy_unchanged(bundle: Bundle, folder: Path) -> None:
    changed = {file for graph in QUANTISED for file in _files(graph)}
    for name in bundle.manifest.files.keys() - changed:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.folder / name, folder / name)


def _graph_bytes(manifest: Manifest) -> dict[str, int]:
    files = manifest.files
    return {
        graph: sum(files[name].bytes for name in _files(graph) if name in files)
        for graph in QUANTISED
    }


def _files(graph: str) -> tuple[str, str]:
    """A graph's file and that of its external data, which only large graphs have."""
    return f"{graph}.onnx", f"{graph}.onnx.data"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
