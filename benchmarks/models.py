"""Bundles of named sizes with random weights, exported as trained ones are.

How fast a model is does not depend on how good it is, so nothing is trained. A bundle is kept
under `build/` until the code that exports it changes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.onnx_export.manifest import ModalitySpec

from .market import market_modalities

if TYPE_CHECKING:
    import onnxruntime as ort

    from feast_anchor.onnx_export.model import Anchor
    from feast_anchor.onnx_export.sizes import ModelConfig

ITEMS = ("tomatoes", "milk", "bread", "wine", "soap", "coffee", "rice", "apples", "cheese", "ham")
AISLES = ("produce", "dairy", "bakery", "cellar", "household", "pantry", "meat")
_WORDS = (
    *("will", "this", "customer", "buy", "fresh", "food", "again", "before", "the", "next"),
    *("month", "ends", "or", "rather", "stop", "coming", "to", "our", "shop", "soon"),
)


@dataclass(frozen=True)
class Size:
    """A model and what it is asked: T events before L tokens of a question, the last `<USER_EMB>`.

    The vocabulary is small at every size: looking a token up costs the same in any table.
    """

    name: str
    config: ModelConfig
    events: int  # T
    tokens: int  # L
    market: bool = False  # reads the demo's marketplace instead of the shop of `events`

    @property
    def modalities(self) -> tuple[ModalitySpec, ...]:
        """Two sources of events that share the budget of T; or the marketplace's four."""
        if self.market:
            return market_modalities(self.events)
        visits = self.events // 4
        return (
            ModalitySpec(
                name="purchases",
                text="{item} in {aisle}",
                amount=True,
                max_events=self.events - visits,
            ),
            ModalitySpec(name="visits", text="looked at {item}", max_events=visits),
        )


def size(name: str, medium_layers: int = 4) -> Size:
    """One of the sizes of the goals ("small", "medium"), or a smaller one ("tiny", "nano").

    Args:
        name: medium is Qwen2.5-0.5B's shape, layers aside; nano is the default of training. With
            "-market" behind it, it reads the demo's marketplace.
        medium_layers: decoder layers of medium; Qwen2.5-0.5B has 24.
    """
    from feast_anchor.onnx_export.sizes import ModelConfig  # needs torch

    tiny: dict[str, Any] = {
        "text": 16,
        "key": 8,
        "hidden": 32,
        "ff": 48,
        "readout": 32,
        "head_hidden": 32,
    }
    qwen: dict[str, Any] = {"hidden": 896, "heads": 14, "kv_heads": 2, "head_dim": 64, "ff": 4864}
    sizes = {
        "tiny": Size("tiny", ModelConfig(query_tokens=True, **tiny), 12, 8),
        "nano": Size("nano", ModelConfig(size="nano", query_tokens=True), 128, 16),
        "small": Size("small", ModelConfig(size="small", query_tokens=True), 128, 16),
        "medium": Size(
            "medium",
            ModelConfig(query_tokens=True, layers=medium_layers, qkv_bias=True, **qwen),
            256,
            16,
        ),
    }
    plain = name.removesuffix("-market")
    found = sizes[plain]
    return replace(found, name=name, config=found.config.sized(), market=name != plain)


@dataclass(frozen=True)
class Subject:
    """An exported bundle, its torch model, and the graph of one full forward beside it."""

    size: Size
    bundle: Bundle
    full_folder: Path  # of the graphs of the full forward

    @cached_property
    def model(self) -> Anchor:
        """The torch model, read back from the bundle and compared with its graphs."""
        from feast_anchor.onnx_export.weights import read_model

        return read_model(self.bundle)

    def full_session(self, graph: str = "full") -> ort.InferenceSession:
        """A session of a full forward, with the very settings of the bundle's own sessions.

        "full" computes every row, "trimmed" of the last layer only the row that is read out.
        """
        return Bundle(self.full_folder, self.bundle.manifest).session(graph)

    def questions(self, count: int) -> list[str]:
        """Different questions of exactly L tokens with `<USER_EMB>`."""
        length = self.size.tokens - 1
        found = [
            " ".join(_WORDS[(first + step * at) % len(_WORDS)] for at in range(length))
            for step in (1, 3, 7, 9)
            for first in range(len(_WORDS))
        ][:count]
        assert all(len(self.bundle.query_ids(query)) == length for query in found)
        assert len(set(found)) == count
        return found


@cache
def subject(size: Size, folder: Path) -> Subject:
    """The bundle of a size, exported into `folder` unless the same code has done so before."""
    digest = hashlib.sha256(repr(size).encode() + _code()).hexdigest()[:12]
    place = folder / f"{size.name}-{digest}"
    if not (place / "full" / "trimmed.onnx").is_file():
        _export(size, place)
    return Subject(size, Bundle.open(place / "bundle"), place / "full")


def _export(size: Size, place: Path) -> None:
    import torch

    from feast_anchor.onnx_export.export import BundleInfo, export_bundle
    from feast_anchor.onnx_export.model import Anchor
    from feast_anchor.onnx_export.vocabulary import special_ids, train_tokenizer

    from .full import export_full

    lines = [f"{word} {item} in {aisle}" for word in _WORDS for item in ITEMS for aisle in AISLES]
    tokenizer = train_tokenizer([*lines, "looked at"], 600)
    torch.manual_seed(0)
    model = Anchor(size.config, special_ids(tokenizer), len(size.modalities))
    info = BundleInfo(size.name, "user", size.modalities, 16, 32, {})
    export_bundle(model, tokenizer, info, place / "bundle")
    export_full(model, place / "full")


def _code() -> bytes:
    """The source of everything that decides what is exported."""
    from feast_anchor import onnx_export

    from . import full

    ours = [Path(__file__), Path(full.__file__)]
    theirs = sorted(Path(onnx_export.__path__[0]).glob("*.py"))
    return b"".join(path.read_bytes() for path in [*ours, *theirs])
