"""Beam's own RunInference with its ONNX handler, on the full forward, and the cascade beside it.

The handler is subclassed as far as it takes to be fair: it reads several inputs, opens the session
with our settings (one thread, no spinning), takes one user's questions as one batch and runs them
so many at a time as is fastest. The cascade runs in the same pipeline in an ordinary DoFn, so that
both pay for Beam alike. RunInference cannot keep a state between two graphs, so it has no cascade.
"""

# No `from __future__ import annotations` here: Beam reads the annotations of DoFns as types.

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference.base import PredictionResult, RunInference
from apache_beam.ml.inference.onnx_inference import OnnxModelHandlerNumpy
from apache_beam.options.pipeline_options import PipelineOptions

from feast_anchor.onnx_export.bundle import Bundle

from ..cascade import Arrays, Cascade
from ..models import Subject
from ..workload import Workload

_RUNNER = "FnApiRunner"


class FullForwards(OnnxModelHandlerNumpy):
    """All pairs of a user and the questions, `pairs_per_run` at a time."""

    def __init__(self, subject: Subject, pairs_per_run: int) -> None:
        super().__init__(str(subject.full_folder / "trimmed.onnx"), max_batch_size=1)
        self._bundle = Bundle(subject.full_folder, subject.bundle.manifest)
        self.pairs_per_run = pairs_per_run

    def load_model(self) -> Any:
        """The session, with the settings of the bundle's own."""
        return self._bundle.session("trimmed")

    def run_inference(
        self, batch: Sequence[Any], inference_session: Any, inference_args: Any = None
    ) -> Iterable[PredictionResult]:
        """One user after another: vectors [Q,embedding] each."""
        for pairs in batch:
            yield PredictionResult(pairs, self._user(pairs, inference_session))

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        """Bytes of a batch, for Beam's metrics."""
        return sum(array.nbytes for pairs in batch for array in pairs.values())

    def _user(self, pairs: Arrays, session: Any) -> Any:
        found = []
        for start in range(0, len(pairs["ids"]), self.pairs_per_run):
            some = slice(start, start + self.pairs_per_run)
            feed = {name: x if name == "prompt" else x[some] for name, x in pairs.items()}
            found.append(session.run(None, feed)[0])
        return np.concatenate(found)


class CascadeUsers(beam.DoFn):
    """Prefix once and all questions behind it, for the histories of a workload by number."""

    def __init__(self, bundle: Bundle, work: Workload) -> None:
        self._bundle, self._work = bundle, work
        self._cascade: Cascade | None = None

    def process(self, element: int) -> Iterator[Any]:
        """Yield vectors [Q,embedding]."""
        if self._cascade is None:
            self._cascade = Cascade(self._bundle)
        history = self._work.histories[element % len(self._work.histories)]
        yield self._cascade.answer([history], self._work.asked)


def run_inference(handler: FullForwards, work: Workload, users: int) -> None:
    """A pipeline of RunInference over so many users."""
    with beam.Pipeline(runner=_RUNNER, options=PipelineOptions([])) as p:
        _ = (
            p
            | beam.Create(range(users))
            | beam.Map(lambda user: _pairs_of(work, user))
            | RunInference(handler)
        )


def run_cascade(bundle: Bundle, work: Workload, users: int) -> None:
    """The same pipeline with the cascade in it."""
    with beam.Pipeline(runner=_RUNNER, options=PipelineOptions([])) as p:
        _ = p | beam.Create(range(users)) | beam.ParDo(CascadeUsers(bundle, work))


def _pairs_of(work: Workload, user: int) -> dict[str, Any]:
    history = work.histories[user % len(work.histories)]
    return dict(Workload((history,), work.asked).pairs())
