"""Another model appears under the path of the bundle between two attempts of one run."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx

from faults.harness import VIEW, NewShop
from faults.judge import Undisturbed, assert_untouched, judge, runs
from feast_anchor.onnx_export.bundle import seal
from feast_anchor.onnx_export.manifest import GRAPHS, read_manifest
from feast_anchor.plugin.catalog import RunStatus


def another_model(bundle: Path, folder: Path) -> None:
    """A sound bundle with other weights."""
    shutil.copytree(bundle, folder)
    graph = folder / f"{GRAPHS[0]}.onnx"
    model = onnx.load(graph)
    weights = next(
        one for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT
    )
    weights.raw_data = (np.frombuffer(weights.raw_data, "<f4") * np.float32(1.5)).tobytes()
    onnx.save(model, graph)
    seal(folder, read_manifest(folder))


def test_a_replaced_bundle_is_refused_until_it_is_put_back(
    make_shop: NewShop, undisturbed: Undisturbed, shop_bundle: Path, tmp_path: Path
) -> None:
    """No row of two models in one run: refused with the reason, then resumed where it stopped."""
    model, kept = tmp_path / "model", tmp_path / "kept"
    shutil.copytree(shop_bundle, model)
    shop = make_shop(bundle=model)
    shop.kill_at("feast_anchor.transforms.manifests:ShardManifest.save", 5)
    done = mtimes(shop.path.glob(f"sinks/{VIEW}.staging/run-*/part-0000[0123].parquet"))
    model.rename(kept)
    another_model(kept, model)

    shop.start().fail("was declared with another model", "put the old bundle back")
    assert_untouched(shop)
    assert shop.shards_done() == 4
    (run,) = runs(shop)
    assert (run.status, run.attempt) == (RunStatus.RUNNING, 1)

    shutil.rmtree(model)
    kept.rename(model)
    shop.start().succeed()
    judge(shop, undisturbed.rows, attempts=2)
    assert len(done) == 4
    assert done.items() <= mtimes(shop.sink.glob("run-*[0-9a-f]/part-*.parquet")).items()


def mtimes(paths: Iterable[Path]) -> dict[str, int]:
    """When each file was written, by its name; nanoseconds."""
    return {path.name: path.stat().st_mtime_ns for path in paths}
