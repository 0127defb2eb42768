from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from feast_anchor.onnx_export import evidence, fitting, objective, training
from feast_anchor.onnx_export.batches import Batch, Batches
from feast_anchor.onnx_export.errors import SourceError, SpecError
from feast_anchor.onnx_export.fitting import Progress, Store, Trace
from feast_anchor.onnx_export.inputs import Ints
from feast_anchor.onnx_export.manifest import read_manifest
from feast_anchor.onnx_export.model import Anchor, ModelConfig
from feast_anchor.onnx_export.settings import TrainConfig
from feast_anchor.onnx_export.threads import one_thread
from feast_anchor.onnx_export.training import train_bundle
from feast_anchor.onnx_export.validation import Scores, split
from tiny import (
    TINY_CUT,
    TINY_MODALITIES,
    build_corpus,
    tiny_config,
    tiny_events,
    tiny_sentence_encoder,
)

SIZES = ModelConfig(text=16, key=8, hidden=16, ff=24, readout=16, head_hidden=16, embedding=16)
CONFIG = TrainConfig(model=SIZES, steps=3, histories=8, questions=6, snapshots=2, topics=3)


def fit(events: pa.Table, config: TrainConfig) -> tuple[Anchor, list[float]]:
    """Training without the export, which takes most of the time."""
    model, trace = run(events, config)
    return model, trace.losses


def run(
    events: pa.Table,
    config: TrainConfig,
    store: Store | None = None,
    report: Progress = lambda text, done: None,
) -> tuple[Anchor, Trace]:
    corpus = build_corpus(
        events, TINY_MODALITIES, cut=TINY_CUT, entity="customer", snapshots_per_user=2, topics=3
    )
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        words = training._words(corpus, config)
        model = Anchor(config.model, words.special, len(TINY_MODALITIES), words.texts)
        batches = Batches(corpus, TINY_MODALITIES, words)
        parts = split(corpus, config.validation_share)
        trace = fitting.fit(model, batches, parts, config, store, report)
    return model, trace


def weights(model: Anchor) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_training_is_repeatable_and_the_seed_matters() -> None:
    """Two runs give the same weights bit for bit; another seed gives others."""
    events = tiny_events()
    one, two = fit(events, CONFIG)[0], fit(events, CONFIG)[0]
    assert torch.equal(weights(one), weights(two))
    assert not torch.equal(weights(one), weights(fit(events, replace(CONFIG, seed=1))[0]))


def test_training_ignores_what_comes_after_the_cut() -> None:
    """Weights are the same bit for bit with and without the events after the cut."""
    events = tiny_events()
    before = events.filter(pc.less(events.column("event_timestamp"), pa.scalar(TINY_CUT)))
    assert torch.equal(weights(fit(events, CONFIG)[0]), weights(fit(before, CONFIG)[0]))


def test_of_many_users_some_are_drawn() -> None:
    """As many as the setting says, none held out, in any order of rows; fewer are among more."""
    events, held_out = tiny_events(), {"u003", "u005"}
    backwards = events.take(pa.array(range(events.num_rows - 1, -1, -1)))

    def users(most: int, table: pa.Table = events, seed: int = 0) -> set[str]:
        scope = training.training_scope(
            table,
            TINY_MODALITIES,
            cut=TINY_CUT,
            entity="customer",
            held_out=held_out,
            config=replace(CONFIG, users=most, seed=seed),
        )
        return set(scope.events.users)

    everyone = users(0)
    assert len(users(5)) == 5
    assert users(5) < users(9) < everyone == users(10_000)
    assert not users(9) & held_out
    assert users(9, backwards) == users(9)
    assert users(9, seed=1) != users(9)


def test_training_lowers_the_loss() -> None:
    """Sixty steps on the tiny shop at least take a fifth off the loss."""
    _, losses = fit(tiny_events(), replace(CONFIG, steps=60, ntp_every=1))
    assert losses[-1] < 0.8 * losses[0]


def test_instructue_is_a_configuration_that_learns() -> None:
    """No evidence and no summary, delimiters, questions word by word, half of the pairs silent."""
    sizes = replace(SIZES, query_tokens=True, delimiters=True, modal_tokens=False, evidence=False)
    config = replace(CONFIG, model=sizes, silent=0.5, steps=60, ntp_every=1)
    model, losses = fit(tiny_events(), config)
    assert (model.evidence, model.summary, model.summary_in) == (None, None, None)
    assert losses[-1] < 0.8 * losses[0]


class Killed(Exception):
    """What a killed process is to this one: nothing after it happens."""


def test_training_leaves_the_callers_random_numbers_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller's torch generator continues as if nothing had happened, even where training ends
    with an error.
    """

    def fail(*_: object) -> None:
        torch.rand(7)
        raise Killed

    monkeypatch.setattr(training, "fit", fail)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with pytest.raises(Killed):
        train_bundle(
            tiny_events(users=6),
            TINY_MODALITIES,
            cut=TINY_CUT,
            out=tmp_path / "b",
            entity="customer_id",
            config=CONFIG,
        )
    assert torch.equal(torch.rand(3), expected)


def kill_after(step: int) -> Progress:
    def report(text: str, done: float) -> None:
        if text.startswith(f"step {step} of"):
            raise Killed

    return report


@pytest.mark.parametrize("killed", [1, 5, 6])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, killed: int) -> None:
    """Killed before the first checkpoint, after one, or right at one: same weights, same losses."""
    config = replace(
        CONFIG, steps=8, accumulate=2, checkpoint_every=3, evaluate_every=2, validation_share=0.3
    )
    whole, expected = run(tiny_events(), config)
    store = Store(tmp_path / "run.safetensors", {"run": 1})
    with pytest.raises(Killed):
        run(tiny_events(), config, store, kill_after(killed))
    said: list[str] = []
    model, trace = run(tiny_events(), config, store, lambda text, done: said.append(text))
    assert len(said) == 8 - killed // 3 * 3 + (killed >= 3)
    assert torch.equal(weights(model), weights(whole))
    assert replace(trace, seconds=0.0) == replace(expected, seconds=0.0)


def test_a_run_can_be_killed_more_than_once(tmp_path: Path) -> None:
    """Going on from a checkpoint that was itself written by a resumed run is no different."""
    config = replace(CONFIG, steps=6, checkpoint_every=2)
    store = Store(tmp_path / "run.safetensors", {})
    for killed in (3, 5):
        with pytest.raises(Killed):
            run(tiny_events(), config, store, kill_after(killed))
    assert torch.equal(
        weights(run(tiny_events(), config, store)[0]), weights(run(tiny_events(), config)[0])
    )


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    """Other settings or data: training stops and says what differs, and the checkpoint stays."""
    config = replace(CONFIG, steps=3, checkpoint_every=1)
    path = tmp_path / "run.safetensors"
    run(tiny_events(), config, Store(path, {"config": {"steps": 3}, "data": "a"}))
    before = path.read_bytes()
    with pytest.raises(SpecError, match="config.steps is 4 now and was 3; data is 'b' now"):
        run(tiny_events(), config, Store(path, {"config": {"steps": 4}, "data": "b"}))
    assert path.read_bytes() == before


def test_accumulated_batches_are_one_step() -> None:
    """Three batches a step give the mean of their gradients: the loss is the mean of the three."""
    events = tiny_events()
    sizes = replace(SIZES, dropout=0.0)  # else each step draws its own
    still = replace(CONFIG, model=sizes, steps=3, learning_rate=0.0, validation_share=0.0)
    still = replace(still, query_noise=0.0)
    single = fit(events, replace(still, ntp_every=1))[1]
    together = fit(events, replace(still, steps=1, accumulate=3))[1]
    assert together == [pytest.approx(sum(single) / 3, rel=1e-5)]


def test_the_learning_rate_warms_up_and_falls_to_nothing() -> None:
    """Five per cent of linear warm-up to the peak, then half a cosine."""
    config = TrainConfig(steps=100, learning_rate=2.0)
    rates = [fitting.rate(config, step) for step in range(101)]
    assert rates[:6] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0, 2.0])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[100] == pytest.approx(0.0)


def test_the_weights_that_validated_best_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five looks the third is the best: its weights come out, not the last ones."""
    figures = iter([0.5, 0.6, 0.8, 0.7, 0.7])
    seen: list[torch.Tensor] = []

    def evaluate(model: Anchor, batches: object, config: TrainConfig) -> Scores:
        seen.append(weights(model).clone())
        return Scores(loss=1.0, matched=next(figures), above_chance=0.0, pairs=9)

    monkeypatch.setattr(fitting, "evaluate", evaluate)
    config = replace(CONFIG, steps=5, evaluate_every=1, validation_share=0.3)
    model, trace = run(tiny_events(), config)
    assert trace.kept is not None
    assert trace.kept["step"] == 3
    assert torch.equal(weights(model), seen[2])
    assert not torch.equal(weights(model), seen[4])


def test_noise_does_not_bring_back_earlier_weights() -> None:
    """A look that is worse by less than noise is kept; one that is worse by more is not, not even
    in small steps down.
    """
    trace = Trace()
    figures = (0.6, 0.68, 0.674, 0.665, 0.673)
    assert [trace.look({"matched": figure}) for figure in figures] == [1, 1, 1, 0, 1]
    assert trace.kept == {"matched": 0.673}


@pytest.mark.parametrize(("patience", "steps"), [(0, 8), (2, 5)])
def test_patience_ends_a_run_that_gets_no_better(
    monkeypatch: pytest.MonkeyPatch, patience: int, steps: int
) -> None:
    """With patience 2, two looks after the best one are enough; with 0 every step is taken."""
    figures = iter([0.5, 0.6, 0.8, 0.7, 0.7, 0.7, 0.7, 0.7])
    monkeypatch.setattr(
        fitting, "evaluate", lambda model, batches, config: Scores(1.0, next(figures), 0.0, 9)
    )
    config = replace(CONFIG, steps=8, evaluate_every=1, validation_share=0.3, patience=patience)
    assert run(tiny_events(), config)[1].step == steps


def test_looking_does_not_change_the_steps() -> None:
    """A run that looks after every step takes the same steps as one that looks at the end."""
    config = replace(CONFIG, validation_share=0.3)
    often = fit(tiny_events(), replace(config, evaluate_every=1))[1]
    assert often == fit(tiny_events(), replace(config, evaluate_every=3))[1]


def model_and_batch(config: ModelConfig = SIZES, silent: float = 0.0) -> tuple[Anchor, Batch]:
    """An untrained model without dropout, and a batch of eight histories of any length that is
    asked every question in two ways.
    """
    torch.manual_seed(0)
    corpus = build_corpus(tiny_events(), TINY_MODALITIES, cut=TINY_CUT, entity="customer")
    words = training._words(corpus, CONFIG)
    model = Anchor(config, words.special, len(TINY_MODALITIES), words.texts).eval()
    batches = Batches(corpus, TINY_MODALITIES, words)
    return model, next(batches.draw(8, 6, 0.0, 0, silent=silent, twice=True))


@torch.no_grad()
def test_answer_tokens_do_not_reach_the_embedding() -> None:
    """The embedding at <USER_EMB> is the same with the answer behind it as without."""
    model, batch = model_and_batch()

    def anchors(batch: Batch) -> torch.Tensor:
        asked = objective._asked(model, batch, objective._query(model, batch))
        return torch.cat([objective.answer_hidden(model, part, 3)[0][:, :, 0] for part in asked])

    other = replace(batch, answers=torch.ones_like(batch.answers))
    assert torch.equal(anchors(batch), anchors(other))


@torch.no_grad()
def test_noise_on_questions_leaves_silent_pairs_silent() -> None:
    """Noise moves the vectors of what is asked; where nothing is asked nothing changes."""
    model, batch = model_and_batch(silent=0.4)
    quiet = batch.query < 0
    assert quiet.any()
    assert not objective._query(model, batch)[quiet].any()
    seen: list[torch.Tensor] = []

    def noted(users: torch.Tensor, answers: torch.Tensor, *_: object) -> torch.Tensor:
        seen.append(users)
        return torch.zeros(())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective, "contrastive", noted)
        for noise in (0.0, 0.5):
            objective.batch_loss(model, batch, replace(CONFIG, query_noise=noise), 0)
    still, moved = seen
    torch.testing.assert_close(moved[quiet], still[quiet])
    assert (moved - still)[~quiet].abs().amax(-1).min() > 0


def test_two_phrasings_are_pulled_together_where_both_are_asked() -> None:
    """By hand: of a pair that agrees and one at a right angle the mean distance is a half; a pair
    with a silent half does not count; a step downhill brings the vectors nearer.
    """
    batch = model_and_batch()[1]
    pairs = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])  # [1,4,2]
    users = pairs.requires_grad_()
    apart = objective._apart(users, replace(batch, query=torch.tensor([[0, 1, 2, 3]])))
    assert float(apart.detach()) == 0.5
    apart.backward()
    assert users.grad is not None
    with torch.no_grad():
        one, other = (users - 0.5 * users.grad)[0, 2:]
    assert float(one @ other) > 0
    silent = objective._apart(pairs.detach(), replace(batch, query=torch.tensor([[0, 1, 2, -1]])))
    assert float(silent) == 0.0


@torch.no_grad()
def test_alike_weighs_the_distance_between_phrasings() -> None:
    """The loss grows by `alike` times that distance, which is positive before any training."""
    model, batch = model_and_batch()
    still = replace(CONFIG, query_noise=0.0, alike=0.0)
    without, double = (
        objective.batch_loss(model, batch, replace(still, alike=weight), 0) for weight in (0.0, 2.0)
    )
    users = objective.embed(model, batch)[0]
    apart = objective._apart(users, batch)
    assert float(apart) > 0
    torch.testing.assert_close(double, without + 2.0 * apart)


def test_a_batch_without_any_answer_has_a_finite_loss() -> None:
    """Nothing to contrast and nothing to write: only the phrasings' distance is left."""
    model, batch = model_and_batch()
    silent = torch.full_like(batch.target, -1)
    batch = replace(batch, target=silent, says=silent)
    loss = objective.batch_loss(model, batch, replace(CONFIG, alike=0.0), 2)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_plain_answers_are_no_candidates() -> None:
    """`embed` gives one vector per answer of the corpus in the batch, without the plain two."""
    model, batch = model_and_batch()
    users, answers = objective.embed(model, batch)
    assert len(answers) == batch.same.shape[1] == len(batch.answers) - 2
    assert users.shape[:2] == batch.target.shape


@pytest.mark.parametrize("config", [SIZES, replace(SIZES, evidence=False)])
def test_every_weight_is_trained(config: ModelConfig) -> None:
    """After one loss with writing, every parameter has a gradient."""
    model, batch = model_and_batch(config)
    objective.batch_loss(model.train(), batch, CONFIG, 2).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


@pytest.mark.parametrize("loss", ["split", "paper", "demo"])
@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_chunks_give_the_gradient_of_the_batch(
    loss: Literal["split", "paper", "demo"], chunk: int
) -> None:
    """In chunks of histories, the last one smaller, loss and gradient are those of all at once."""
    config = replace(CONFIG, query_noise=0.0, loss=loss)
    model, batch = model_and_batch(silent=0.2)

    def found(size: int) -> tuple[float, torch.Tensor]:
        model.zero_grad()
        value = objective.backward(model, batch, replace(config, chunk=size), 2, 0.5)
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return value, torch.cat(gradients)

    (value, gradient), (cached, in_chunks) = found(0), found(chunk)
    assert value == pytest.approx(cached, rel=1e-5)
    whole = objective.batch_loss(model, batch, config, 2)
    assert value == pytest.approx(0.5 * float(whole.detach()))
    assert gradient.abs().max() > 1e-2
    assert (gradient - in_chunks).abs().max() < 1e-5 * gradient.abs().max()


def test_part_of_a_batch_is_every_tensor_of_its_histories() -> None:
    """`only` cuts each tensor that has a row per history, takes away what is padding for all of
    them, keeps the rest, and reads the same texts; vectors in chunks are those of all at once.
    """
    model, batch = model_and_batch(silent=0.2)
    rows = torch.tensor([5, 2])
    part, changed = batch.only(rows), set()
    longest = int(batch.plen[rows].max())
    assert longest < batch.text.shape[1]
    for name in batch.__dataclass_fields__:
        mine, theirs = getattr(part, name), getattr(batch, name)
        if name in ("text", "texts"):
            continue
        if mine is not theirs:
            changed.add(name)
            own = theirs[rows]
            assert torch.equal(mine, own[:, :longest] if name in _PER_EVENT else own)
    shared = {"queries", "answer_texts", "answers", "answer_length", "same"}
    assert changed == set(batch.__dataclass_fields__) - shared - {"text", "texts"}
    assert torch.equal(part.texts[part.text], batch.texts[batch.text[rows, :longest]])
    with torch.no_grad():
        for mine, theirs in zip(
            objective.embed(model, batch, 3), objective.embed(model, batch), strict=True
        ):
            torch.testing.assert_close(mine, theirs)


_PER_EVENT = ("features", "modality", "days")


@torch.no_grad()
def test_parts_of_a_batch_are_all_of_it_with_less_padding() -> None:
    """Every history is in one part, in order; vectors are those of the padded batch as a whole."""
    model, batch = model_and_batch(silent=0.2)
    parts = batch.parts()
    assert torch.equal(torch.cat([part.plen for part in parts]), batch.plen)
    sizes = [part.text.shape for part in parts]
    assert sum(histories * events for histories, events in sizes) < 0.8 * batch.text.numel()
    query = objective._query(model, batch)
    state = objective._state(model, batch, model.texts.vectors(batch.texts))
    whole = objective._vectors(model, objective.Asked(batch, query, state))
    in_parts = objective._users(model, objective._asked(model, batch, query))
    torch.testing.assert_close(in_parts, whole)


@pytest.mark.parametrize("config", [SIZES, replace(SIZES, order="summary first")])
@torch.no_grad()
def test_numbers_of_evidence_are_those_that_questions_read(config: ModelConfig) -> None:
    """Without the decoder they are what the suffix finds in the whole state."""
    model, batch = model_and_batch(config, silent=0.2)
    query = objective._query(model, batch)
    state = objective._state(model, batch, model.texts.vectors(batch.texts))
    found, _ = model.find_evidence(batch.plen, batch.now, query, state)
    assert found is not None
    for chunk in (0, 3):
        numbers = objective.evidence_numbers(model, batch, chunk)
        torch.testing.assert_close(numbers, found.flatten(0, 1))


def test_training_begins_with_standard_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When steps begin, the numbers that they will read have mean 0 and, where they vary at all,
    standard deviation 1.
    """
    monkeypatch.setattr(evidence, "FAR", 1e9)
    seen: list[torch.Tensor] = []

    def look(model: Anchor, batches: Batches, parts: tuple[Ints, Ints], *_: object) -> None:
        drawn = batches.draw(8, 6, 0.0, CONFIG.seed, silent=CONFIG.silent, among=parts[0])
        numbers = torch.cat(
            [objective.evidence_numbers(model, batch) for batch in islice(drawn, 8)]
        )
        seen.append(model.readout.norm(numbers).detach() / 0.5)  # what the gain starts with
        raise Killed

    monkeypatch.setattr(training, "fit", look)
    with pytest.raises(Killed):
        train_bundle(
            tiny_events(),
            TINY_MODALITIES,
            cut=TINY_CUT,
            out=tmp_path / "b",
            entity="customer",
            config=CONFIG,
        )
    (standard,) = seen
    spread, mean = torch.std_mean(standard, dim=0, correction=0)
    varies = spread > 1e-3
    assert mean[varies].abs().max() < 1e-3
    assert varies.float().mean() > 0.5
    torch.testing.assert_close(spread[varies], torch.ones(int(varies.sum())), atol=1e-3, rtol=0)


def test_chunks_see_the_same_noise_both_times() -> None:
    """Each chunk is computed twice. With noise and dropout the gradient is still that of the loss
    under one draw of them: a small step against it lowers the loss by step * norm.
    """
    config = replace(CONFIG, query_noise=0.5, chunk=3)
    model, batch = model_and_batch(replace(SIZES, dropout=0.3))
    model.train()

    def loss() -> float:
        model.zero_grad()
        torch.manual_seed(7)
        return objective.backward(model, batch, config, 2)

    before = loss()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    norm = float(torch.cat([g.flatten() for g in gradients]).norm())
    step = 1e-3
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.sub_(step * gradient / norm)
    assert before - loss() == pytest.approx(step * norm, rel=0.05)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # slower, not wrong
def test_the_objective_bears_bfloat16() -> None:
    """Inside autocast, as on a GPU, loss and gradients are finite and near those of float32."""
    model, batch = model_and_batch()
    still = replace(CONFIG, query_noise=0.0)
    exact = float(objective.batch_loss(model, batch, still, 2).detach())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective.batch_loss(model, batch, still, 2)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(exact, rel=0.02)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_manifest_records_the_training(bundle_folder: Path) -> None:
    """The bundle says what it was trained on, how, with which libraries, and how exact it is."""
    manifest = read_manifest(bundle_folder)
    record = manifest.training
    assert record["users"] == 30
    assert record["config"]["steps"] == 4
    assert record["pairs"] > 0
    assert record["steps"] == 4
    assert 0 < record["validation_users"] < 30
    assert record["validation"]["step"] == 4
    assert record["data"]["rows"] == record["events"]
    assert all(len(digest) == 64 for digest in record["data"]["sha256"].values())
    assert record["cut"] == TINY_CUT.isoformat()
    assert torch.__version__.startswith(record["versions"]["torch"].split("+")[0])
    assert max(manifest.parity["max_abs_difference"].values()) <= manifest.parity["tolerance"]
    assert manifest.modalities == TINY_MODALITIES


def test_nothing_to_train_on_leaves_no_folder(tmp_path: Path) -> None:
    """An empty table is a SourceError and writes nothing."""
    out = tmp_path / "bundle"
    with pytest.raises(SourceError, match="no events to train on"):
        train_bundle(
            tiny_events().slice(0, 0), TINY_MODALITIES, cut=TINY_CUT, out=out, entity="customer_id"
        )
    assert list(tmp_path.iterdir()) == []


def test_no_time_between_event_and_cut_is_a_source_error(tmp_path: Path) -> None:
    """When nobody can be asked anything after their first event, the error says so."""
    events = tiny_events(users=1)
    one = events.filter(pc.equal(events.column("modality"), 0)).sort_by("event_timestamp")
    late = one.slice(0, 1).column("event_timestamp")[0].as_py() + timedelta(seconds=1)
    with pytest.raises(SourceError, match="no training examples"):
        train_bundle(
            one,
            TINY_MODALITIES,
            cut=late,
            out=tmp_path / "b",
            entity="customer_id",
            config=CONFIG,
        )


@pytest.mark.slow
def test_a_killed_training_ends_in_the_same_bundle(tmp_path: Path, bundle_folder: Path) -> None:
    """Killed after a checkpoint and started again: the digest is that of the run nobody killed,
    and of the checkpoint nothing is left.
    """

    def train(report: Progress) -> str:
        config = replace(tiny_config(), checkpoint_every=2)
        return train_bundle(
            tiny_events(),
            TINY_MODALITIES,
            cut=TINY_CUT,
            out=tmp_path / "tiny",
            entity="customer_id",
            config=config,
            on_progress=report,
        ).digest

    with pytest.raises(Killed):
        train(kill_after(3))
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.training.safetensors"]
    said: list[str] = []
    assert train(lambda text, done: said.append(text)) == read_manifest(bundle_folder).digest
    assert "going on after step 2" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny", "tiny.card"]


def test_sizes_that_do_not_fit_are_a_spec_error() -> None:
    """Three heads for 16 numbers: an error for people, before anything is read."""
    with pytest.raises(SpecError, match="heads=3"):
        replace(CONFIG, model=replace(SIZES, heads=3))


def test_texts_longer_than_the_encoder_reads_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pretrained encoder has so many positions; the setting that exceeds them is named."""
    encoder, tokenizer = tiny_sentence_encoder()
    monkeypatch.setattr(training, "read_sentence_encoder", lambda _: (encoder, tokenizer))
    fits = replace(CONFIG, text_encoder="somewhere", max_text_tokens=encoder.config.positions)
    assert training._text_encoder(fits, tokenizer)[1].width == encoder.config.hidden
    too_long = replace(fits, max_text_tokens=encoder.config.positions + 1)
    with pytest.raises(SpecError, match="max_text_tokens=21, but somewhere reads at most 20"):
        training._text_encoder(too_long, tokenizer)
