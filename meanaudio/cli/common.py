"""What the verbs share: the application, and options that mean the same everywhere."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="Text to audio in one network evaluation."
)
data_app = typer.Typer(no_args_is_help=True, help="Build and check data sets.")
app.add_typer(data_app, name="data")

Model = Annotated[str, typer.Option("--model", "-m", help="A checkpoint's name or folder.")]
Device = Annotated[Optional[str], typer.Option(help="cpu, cuda, cuda:1, mps; the best there is if left out.")]
Dtype = Annotated[Optional[str], typer.Option(help="float32 or bf16; bf16 on CUDA and float32 elsewhere if left out.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
Set = Annotated[Optional[list[str]], typer.Option("--set", help="section.key=value; may be repeated.")]
