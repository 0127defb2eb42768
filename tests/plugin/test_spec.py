from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from feast import FeatureView
from feast.protos.feast.core.FeatureView_pb2 import FeatureView as FeatureViewProto
from hypothesis import given, settings
from hypothesis import strategies as st

from feast_anchor.onnx_export.errors import SpecError
from feast_anchor.plugin.spec import (
    TAG,
    ModalityDecl,
    ScenarioDecl,
    ViewSpec,
    is_ours,
    spec_of,
)
from shop import event_view, shop_view

PaperBundle = Callable[..., Path]

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
SPECS = st.builds(
    ViewSpec,
    bundle=TEXT,
    digest=TEXT,
    dim=st.integers(1, 4096),
    events=st.lists(
        st.builds(
            ModalityDecl,
            view=TEXT,
            name=TEXT,
            kind=st.sampled_from(["events", "table"]),
            text=TEXT,
            amount=st.none() | TEXT,
            max_events=st.integers(1, 10_000),
            timezone=st.none() | TEXT,
        ),
        max_size=3,
    ).map(tuple),
    scenarios=st.lists(
        st.builds(
            ScenarioDecl,
            name=TEXT,
            query=st.none() | TEXT,
            prompt=st.none() | TEXT,
            space=TEXT,
            positive=st.lists(TEXT, max_size=2).map(tuple),
            negative=st.lists(TEXT, max_size=2).map(tuple),
        ),
        max_size=3,
    ).map(tuple),
    snapshots_seconds=st.none() | st.floats(1, 1e9),
)


@pytest.fixture
def view(tmp_path: Path, paper_bundle: PaperBundle) -> FeatureView:
    """A scenario view."""
    return shop_view(tmp_path, paper_bundle())


@settings(deadline=None)
@given(spec=SPECS)
def test_any_spec_survives_a_registry_as_text(spec: ViewSpec) -> None:
    """What a tag says after a trip through Feast's protobuf is what was declared."""
    raw = event_view(Path("unused"), "orders")
    raw.tags = {TAG: spec.model_dump_json()}
    stored = raw.to_proto().SerializeToString()
    assert spec_of(FeatureView.from_proto(FeatureViewProto.FromString(stored))) == spec


def test_only_views_with_our_tag_are_ours(view: FeatureView, tmp_path: Path) -> None:
    """Raw and ranking views, and things that are no feature views, go to Feast's own engine."""
    assert is_ours(view)
    assert not is_ours(event_view(tmp_path, "orders"))
    assert not is_ours(None)
    assert not is_ours(view.batch_source)


def edited(view: FeatureView, **changes: Any) -> FeatureView:
    """The view with some keys of its tag changed; None removes one."""
    payload = json.loads(view.tags[TAG]) | changes
    kept = {key: value for key, value in payload.items() if value is not None}
    view.tags = {TAG: json.dumps(kept)}
    return view


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": 2}, "version"),
        ({"digest": None}, "digest"),
        ({"dim": "many"}, "dim"),
        ({"colour": "red"}, "colour"),
        ({"scenarios": [{"name": "tea"}]}, "scenarios.0.space"),
        ({"events": "orders"}, "events"),
    ],
)
def test_a_tag_that_was_edited_or_is_newer_is_refused(
    view: FeatureView, changes: dict[str, Any], says: str
) -> None:
    """The error names view, tag and key, and says how to declare it again."""
    with pytest.raises(SpecError, match="'taste_v1': its 'feast_anchor' tag cannot be read") as e:
        spec_of(edited(view, **changes))
    assert says in str(e.value)
    assert "declare it again with scenario_view()" in str(e.value)


@pytest.mark.parametrize("text", ["", "{", "null", "[]", '"code"'])
def test_a_tag_that_is_no_object_is_refused(view: FeatureView, text: str) -> None:
    """Whatever stands in the tag, the error is one for people."""
    view.tags = {TAG: text}
    with pytest.raises(SpecError, match="tag cannot be read"):
        spec_of(view)


def test_a_spec_cannot_be_changed_in_place(view: FeatureView) -> None:
    """Specs are values: what was planned is what runs."""
    with pytest.raises(ValueError, match="frozen"):
        spec_of(view).dim = 3


def test_a_scores_fingerprint_is_that_of_its_space_and_answers() -> None:
    """Another space, another answer, or an answer on the other side: each is another meaning."""

    def space(vectors: str, positive: tuple[str, ...], negative: tuple[str, ...]) -> str | None:
        decl = ScenarioDecl(
            name="tea", query="?", prompt=None, space=vectors, positive=positive, negative=negative
        )
        score = decl.as_column().score
        return None if score is None else score.space

    meanings = [
        space("a1", ("yes",), ("no",)),
        space("a2", ("yes",), ("no",)),
        space("a1", ("no",), ("yes",)),
        space("a1", ("sure", "yes"), ("no",)),
        space("a1", ("yes",), ("never", "no")),
        "a1",
    ]
    assert len(set(meanings)) == len(meanings)
    assert space("a1", ("yes",), ("no",)) == meanings[0]
    assert {len(meaning or "") for meaning in meanings[:-1]} == {32}
    assert space("a1", (), ()) is None
