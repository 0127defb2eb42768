from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from feast_anchor.onnx_export import card
from feast_anchor.onnx_export.card import data_digests, identity
from feast_anchor.onnx_export.corpus import Corpus, read_events
from feast_anchor.onnx_export.curves import Curves, draw_curves
from feast_anchor.onnx_export.manifest import read_manifest
from feast_anchor.onnx_export.settings import TrainConfig
from tiny import TINY_CUT, TINY_MODALITIES, build_corpus, tiny_events


def digests(table: pa.Table, held_out: tuple[str, ...] = ()) -> dict[str, str]:
    return data_digests(read_events(table, TINY_MODALITIES, TINY_CUT, held_out))


def test_digests_do_not_depend_on_order_or_on_what_is_not_read() -> None:
    """The same events backwards, in two chunks, or without those after the cut: same digests."""
    events = tiny_events()
    backwards = events.take(pa.array(range(events.num_rows - 1, -1, -1)))
    chunks = pa.concat_tables([events.slice(300), events.slice(0, 300)])
    early = events.filter(pa.compute.less(events.column("event_timestamp"), pa.scalar(TINY_CUT)))
    assert digests(backwards) == digests(chunks) == digests(early) == digests(events)


def test_each_column_has_its_own_digest() -> None:
    """Another amount changes the digest of amounts alone; a user less, that of every column."""
    events = tiny_events()
    at = events.schema.get_field_index("amount")
    amounts = pa.compute.add(events.column("amount"), 1.0).cast(events.schema.field(at).type)
    other = digests(events.set_column(at, events.schema.field(at), amounts))
    assert [name for name, digest in digests(events).items() if other[name] != digest] == ["amount"]
    fewer = digests(events, ("u003",))
    assert all(fewer[name] != digest for name, digest in digests(events).items())


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return build_corpus(tiny_events(), TINY_MODALITIES, cut=TINY_CUT, entity="customer")


def test_identity_covers_what_decides_weights_and_only_that(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another seed, template or code is another run; another checkpoint interval is not."""
    config = TrainConfig()
    one = identity(corpus, TINY_MODALITIES, "customer_id", TINY_CUT, config)
    assert json.loads(json.dumps(one)) == one

    def other(config: TrainConfig, text: str = TINY_MODALITIES[0].text) -> dict[str, Any]:
        specs = (TINY_MODALITIES[0].model_copy(update={"text": text}), *TINY_MODALITIES[1:])
        return identity(corpus, specs, "customer_id", TINY_CUT, config)

    assert other(replace(config, checkpoint_every=7)) == one
    assert other(replace(config, seed=7)) != one
    assert other(config, text="{item} at {shop}") != one
    monkeypatch.setattr(card, "sha256_file", lambda path: "edited")
    assert other(config)["code"] != one["code"]
    assert other(config)["data"] == one["data"]


def test_card_and_curves_stand_beside_the_bundle(bundle_folder: Path) -> None:
    """card.json repeats the manifest's record; the curves have one point a step; a PNG shows."""
    folder = bundle_folder.with_name("tiny.card")
    assert sorted(path.name for path in folder.iterdir()) == [
        "card.json",
        "curves.json",
        "curves.png",
    ]
    manifest = read_manifest(bundle_folder)
    card = json.loads((folder / "card.json").read_text())
    assert card["training"] == manifest.training
    assert card["bundle"]["digest"] == manifest.digest
    curves = json.loads((folder / "curves.json").read_text())
    assert len(curves["loss"]) == len(curves["learning_rate"]) == 4
    assert [look["step"] for look in curves["looks"]] == [4]
    assert curves["kept_step"] == 4
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_curves_of_a_single_step_without_validation(tmp_path: Path) -> None:
    """The shortest run there is can be drawn."""
    draw_curves(tmp_path / "c.png", Curves((1.0,), (0.1,), (), None), "shortest")
    assert (tmp_path / "c.png").stat().st_size > 1000
