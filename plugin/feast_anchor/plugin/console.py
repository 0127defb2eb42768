"""What the commands share: the terminal, common options, errors for people."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from feast_anchor.onnx_export.errors import AnchorError

console = Console(soft_wrap=True)

_TABLE_WIDTH = 120  # characters


def wide_console() -> Console:
    """For tables of ids and dates, which are of no use cut off: a narrow terminal folds lines."""
    return Console(soft_wrap=True, width=max(console.width, _TABLE_WIDTH))


RepoOption = Annotated[Path, typer.Option("--repo", help="Folder with feature_store.yaml.")]


@contextmanager
def readable_errors() -> Iterator[None]:
    """Errors made for people are shown as one message; anything else keeps its traceback."""
    try:
        yield
    except AnchorError as error:
        print_error(error)
        raise typer.Exit(1) from error


def print_error(error: BaseException) -> None:
    """Show an error's message on the standard error stream."""
    text = f"[bold red]Error:[/] {escape(str(error))}"
    Console(stderr=True, soft_wrap=True).print(text, highlight=False)
