"""What the verbs share: the application, and options that mean the same everywhere."""

from __future__ import annotations

from itertools import takewhile
from typing import Annotated, Optional

import typer
from typer.core import TyperCommand

from meanaudio.errors import InputError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="Text to audio in one network evaluation."
)
data_app = typer.Typer(no_args_is_help=True, help="Build and check data sets.")
app.add_typer(data_app, name="data")

Model = Annotated[str, typer.Option("--model", "-m", help="A checkpoint's name or folder.")]
Device = Annotated[Optional[str], typer.Option(help="cpu, cuda, cuda:1, mps; the best there is if left out.")]
Dtype = Annotated[Optional[str], typer.Option(help="float32 or bf16; bf16 on CUDA and float32 elsewhere if left out.")]
ByEvent = Annotated[
    Optional[bool],
    typer.Option("--by-event/--as-a-whole", help="Make 'X, then Y' sound by sound, or in one; as the checkpoint does if left out."),
]
KnownCaptions = Annotated[
    Optional[int],
    typer.Option(
        "--known-captions", min=0, help="Read each prompt with up to so many known captions; the checkpoint says how many if left out."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
Columns = Annotated[Optional[list[str]], typer.Option("--column", help="field=COLUMN of the table, such as caption=text; may be repeated.")]
Workers = Annotated[Optional[int], typer.Option(help="Files read at once; as many as there are cores if left out.")]
Set = Annotated[Optional[list[str]], typer.Option("--set", help="section.key=value; may be repeated.")]


def columns_of(given: Optional[list[str]]) -> dict[str, str | None]:
    """`field=COLUMN` options as the readers want them; nothing behind the sign leaves the field out."""
    columns: dict[str, str | None] = {}
    for text in given or []:
        field, sign, column = text.partition("=")
        if not sign:
            raise InputError(f"--column {text!r}: must be field=COLUMN, such as caption=text")
        columns[field.strip()] = column.strip() or None
    return columns


class Lists(TyperCommand):
    """A command whose repeatable options take several values at once: `--steps 1 2 5` is `--steps 1 --steps 2 --steps 5`.

    Only for commands without positional arguments, whose words could not be told from an option's values.
    """

    def parse_args(self, ctx, args):
        lists = {name for parameter in self.params if getattr(parameter, "multiple", False) for name in parameter.opts}
        spelled: list[str] = []
        rest = list(args)
        while rest:
            word = rest.pop(0)
            values = list(takewhile(lambda x: not _is_option(x), rest)) if word in lists else []
            spelled += [x for value in values for x in (word, value)] or [word]
            del rest[: len(values)]
        return super().parse_args(ctx, spelled)


def _is_option(word: str) -> bool:
    return word.startswith("-") and not word[1:2].isdigit()  # -1 is a value, which the verb refuses by itself
