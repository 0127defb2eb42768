"""The commands that make, tune and judge bundles."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from .console import RepoOption, console, readable_errors
from .held_out import read_held_out

app = typer.Typer()

CutOption = Annotated[
    datetime,
    typer.Option(
        help="Only events before this instant (UTC) are read, such as 2017-09-01T00:00:00."
    ),
]
ModalitiesOption = Annotated[
    str, typer.Option(help="Where the list of Modality stands, as module:NAME.")
]
HeldOutOption = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        help="Text file of entity keys, one a line, that must not be trained on.",
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="TOML file of training settings (TrainConfig)."),
]


@app.command()
def train(
    cut: CutOption,
    out: Annotated[Path, typer.Option(help="Bundle folder, replaced as a whole.")],
    modalities: ModalitiesOption = "events:MODALITIES",
    repo: RepoOption = Path("."),
    held_out: HeldOutOption = None,
    config: ConfigOption = None,
    corpus: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="What `feast-anchor corpus` stored with the same options: its questions, a "
            "writer's among them, are trained on instead of being asked anew.",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimiser steps, in place of the file's.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of every random choice, in place of the file's.")
    ] = None,
) -> None:
    """Train a bundle on your own event tables (needs the `train` extra).

    Run card and curves go to OUT.card. A run that was stopped goes on from its checkpoint,
    OUT.training.safetensors, when it is started again with the same settings and data.
    """
    with readable_errors():
        from .train import train_bundle_from_repo, train_settings

        def report(text: str, done: float) -> None:
            console.print(f"{done:4.0%} {text}", highlight=False)

        manifest = train_bundle_from_repo(
            repo.absolute(),
            modalities,
            cut=cut.replace(tzinfo=UTC) if cut.tzinfo is None else cut,
            out=out.absolute(),
            held_out=read_held_out(held_out),
            config=train_settings(config, steps, seed, report),
            corpus=corpus.absolute() if corpus else None,
            on_progress=report,
        )
        console.print(f"Wrote {out}, digest {manifest.digest}; curves in {out}.card")


@app.command()
def tune(
    scenario: Annotated[
        str, typer.Argument(help="The scenario's name; the prompt is stored under it.")
    ],
    labels: Annotated[
        Path,
        typer.Option(
            dir_okay=False,
            help="Parquet file: the entity's join key, event_timestamp (the instant at which the "
            "label was asked, with a time zone) and a boolean column.",
        ),
    ],
    bundle: Annotated[Path, typer.Option(help="Bundle folder; the prompt is added to it.")],
    query: Annotated[
        str | None, typer.Option(help="The scenario's question, or give --view.")
    ] = None,
    view: Annotated[
        str | None, typer.Option(help="An applied view that has the scenario with its question.")
    ] = None,
    repo: RepoOption = Path("."),
    modalities: Annotated[
        str, typer.Option(help="Where the list of Modality stands, as module:NAME.")
    ] = "events:MODALITIES",
    label_column: Annotated[
        str | None, typer.Option(help="The label's column; the scenario's name by default.")
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Text file of entity keys, one a line, that must not be tuned on.",
        ),
    ] = None,
    most_rows: Annotated[
        int, typer.Option(min=1, help="Label rows to use at most; their states are in memory.")
    ] = 2000,
    steps: Annotated[int | None, typer.Option(min=1, help="Most optimiser steps.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of every random choice.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Tune a prompt anew that the bundle has already.")
    ] = False,
) -> None:
    """Fit one scenario to your labels: a soft prompt of a few tokens, in minutes on a CPU.

    Nothing else of the bundle changes: no weight, no digest, no other scenario's vectors, and no
    user's prefix. The tuned scenario's vectors are of a new embedding space, so they are served
    when the scenario names the prompt and the view has a new name:

        feast-anchor tune tea --labels labels.parquet --bundle models/shopper --query "Buys tea?"
        Scenario("tea", "Buys tea?", prompt="tea")

    Only events strictly before a label's event_timestamp are read. A quarter of the users choose
    the step that is kept; how well they are told apart before and after is printed and kept in the
    manifest. Needs the `train` extra.
    """
    with readable_errors():
        from .tune import prompt_settings, tune_from_repo

        def report(text: str, done: float) -> None:
            console.print(f"{done:4.0%} {text}", highlight=False)

        found = tune_from_repo(
            repo.absolute(),
            scenario,
            labels=labels.absolute(),
            bundle=bundle.absolute(),
            query=query,
            view=view,
            modalities=modalities,
            column=label_column,
            held_out=read_held_out(held_out),
            config=prompt_settings(steps, seed),
            most_rows=most_rows,
            replace=replace,
            on_progress=report,
        )
        for line in found.sentences(scenario, str(bundle)):
            console.print(line, highlight=False, markup=False)


@app.command()
def corpus(
    cut: CutOption,
    out: Annotated[Path, typer.Option(help="The corpus's folder; read if it is already there.")],
    modalities: ModalitiesOption = "events:MODALITIES",
    repo: RepoOption = Path("."),
    held_out: HeldOutOption = None,
    config: ConfigOption = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of every random choice, in place of the file's.")
    ] = None,
    writer: Annotated[
        str | None,
        typer.Option(
            help="OpenAI-compatible endpoint that writes further questions from facts about "
            "training users, such as http://localhost:8000/v1. Its key, if it needs one, is read "
            "from FEAST_ANCHOR_WRITER_KEY."
        ),
    ] = None,
    writer_model: Annotated[str, typer.Option(help="The endpoint's model.")] = "default",
    max_requests: Annotated[
        int, typer.Option(min=1, help="Most requests to the endpoint, failed ones included.")
    ] = 200,
) -> None:
    """Build and store the questions and answers that `train` would train on, and count them."""
    with readable_errors():
        from feast_anchor.onnx_export.endpoint import Endpoint

        from .corpus import statistics_tables, store_corpus_from_repo

        stored = store_corpus_from_repo(
            repo.absolute(),
            modalities,
            cut=cut.replace(tzinfo=UTC) if cut.tzinfo is None else cut,
            out=out.absolute(),
            held_out=read_held_out(held_out),
            config=config.absolute() if config else None,
            seed=seed,
            endpoint=Endpoint(writer, writer_model) if writer else None,
            max_requests=max_requests,
            on_progress=lambda text, done: console.print(f"{done:4.0%} {text}", highlight=False),
        )
        console.print(*statistics_tables(stored.statistics), sep="\n")
        if stored.writer:
            console.print(stored.writer, highlight=False)


@app.command()
def evaluate(
    config: Annotated[Path, typer.Argument(help="The evaluation file (TOML).", dir_okay=False)],
    out: Annotated[Path, typer.Option(help="Folder for summary.json, plots and bundles.")] = Path(
        "build/evaluate"
    ),
    part: Annotated[
        str,
        typer.Option(
            help="Whose users are reported: 'test', or 'validation' to choose settings without "
            "looking at the test users."
        ),
    ] = "test",
    seed: Annotated[int | None, typer.Option(help="Instead of the file's seed.")] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="Every seed, split and variant of the file's \\[full]; goes on where it stopped.",
        ),
    ] = False,
) -> None:
    r"""Train a bundle and measure what asking the question is worth, against strong baselines.

    The file names your modalities, a table of yes/no labels and one question per label:

        repo = "."                                # feature repo, relative to the file
        modalities = "events:MODALITIES"
        labels = "data/evaluation_labels.parquet" # in the repo: join key, event_timestamp, bools
        cut = 2017-09-01T00:00:00Z                # labels at exactly this as-of are reported
        horizon_days = 122                        # how far ahead a label looks

        \[scenarios.produce]
        query = "Will this household buy fresh produce in the next four months?"

    Users are divided by a hash of their key; those that are reported are never trained on. Label
    rows at earlier as-of times, if there are any, train a baseline and tune prompts. Needs the
    `train` extra. All settings: docs/evaluate.md.
    """
    with readable_errors():
        from .evaluate import evaluate as run_evaluation
        from .evaluate.config import checked_part

        run_evaluation(config, out, part=checked_part(part), seed=seed, full=full, console=console)


@app.command()
def bundle(folder: Annotated[Path, typer.Argument(help="The bundle's folder.")]) -> None:
    """Verify a bundle and say what it is."""
    with readable_errors():
        from feast_anchor.onnx_export.bundle import Bundle

        manifest = Bundle.open(folder).manifest
        table = Table(title=f"Bundle {manifest.name}: verified", show_header=False)
        table.add_row("digest", manifest.digest)
        table.add_row("vector", f"{manifest.dims.embedding} x float32, unit length")
        table.add_row("decoder", manifest.dtype)
        for modality in manifest.modalities:
            table.add_row(
                f"modality {modality.name}",
                f"{modality.kind}, newest {modality.max_events}: {modality.text!r}",
            )
        for name in ("cut", "users", "events", "pairs", "loss_by_tenth", "validation", "seconds"):
            if name in manifest.training:
                table.add_row(f"training {name}", str(manifest.training[name]))
        for name, value in manifest.parity.items():
            table.add_row(f"parity {name}", str(value))
        for name, value in manifest.quantisation.items():
            table.add_row(f"quantisation {name}", str(value))
        console.print(table)


@app.command()
def quantize(
    source: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of an fp32 bundle.")],
    out: Annotated[Path, typer.Option(help="Folder of the new bundle, replaced as a whole.")],
    gate: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="Least cosine to the fp32 vectors of 99 % of the vectors."
        ),
    ] = 0.999,
    users: Annotated[int, typer.Option(min=2, help="Made-up users to compare vectors of.")] = 200,
) -> None:
    """Make a bundle whose decoder computes in int8: about twice as fast on a CPU, a quarter of the
    decoder's size.

    Every token is scaled by its own largest number, so a user's vector has the same bits in
    whatever company, as in fp32. Both bundles answer questions about made-up users; the cosines of
    their vectors are printed and kept in the manifest, and if 1 % of them are below the gate no
    bundle is written.

    The result is another model: its vectors are of new embedding spaces, so declare a view of a
    new name with it and run `feast apply`. Tuned prompts are copied. The smallest decoders gain
    nothing (`size = "nano"`, the default); the printed speed tells. Needs the `train` extra.

        feast-anchor quantize models/shopper --out models/shopper_int8
    """
    with readable_errors():
        from .train import needs_train_extra

        with needs_train_extra():
            from feast_anchor.onnx_export.quantize import quantize_bundle

        def report(text: str, done: float) -> None:
            console.print(f"{done:4.0%} {text}", highlight=False)

        found = quantize_bundle(source, out, gate=gate, users=users, on_progress=report)
        for line in found.sentences():
            console.print(line, highlight=False, markup=False)
        console.print(f"Wrote {out}, digest {found.manifest.digest}", highlight=False)
