"""`feast-anchor`: what Feast's own command line does not do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import commands_model, commands_runs
from .console import RepoOption, readable_errors

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Query-conditioned user embeddings as Feast feature views.\n\n"
    "Typical order: write your modalities, `feast-anchor train`, declare a scenario_view, "
    "`feast apply`, `feast materialize`. See the README for a view in one screen.",
)


@app.command()
def demo(
    repo: RepoOption = Path("feature_repo"),
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the raw Complete Journey Parquet files. Without it, a seeded "
            "generator makes a small marketplace."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for summary.json.")] = Path("build/demo"),
    prepare_only: Annotated[
        bool, typer.Option("--prepare-only", help="Stop after tables and bundle are made.")
    ] = False,
    tables_only: Annotated[
        bool, typer.Option("--tables-only", help="Stop after the tables are made.")
    ] = False,
) -> None:
    """Run the whole job on demo data: tables, training, apply, materialize, ranker, join, probe.

    Empties and refills the repo's data/ and models/ folders (only if a demo made them).
    """
    with readable_errors():
        from .demo.run import run_demo

        run_demo(
            repo,
            data,
            out,
            until="tables" if tables_only else "bundle" if prepare_only else "report",
        )


app.add_typer(commands_model.app)
app.add_typer(commands_runs.app)

if __name__ == "__main__":
    app()
