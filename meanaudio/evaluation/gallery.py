"""A page to look at and to listen to: references beside outputs, as static HTML that asks nothing of anybody."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from meanaudio.audio import file_facts, limit_peak, load_audio, save_audio
from meanaudio.checkpoint import write_text
from meanaudio.evaluation.clips import Sound, relative, stem_of
from meanaudio.evaluation.features import NUMBERS
from meanaudio.evaluation.report import Report, Row
from meanaudio.plots import save_spectrogram

# Nothing but files beside the page; "self" alone is not enough where the page is opened from disk.
POLICY = "default-src 'none'; img-src 'self' file:; media-src 'self' file:; style-src 'unsafe-inline'"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 100rem; padding: 0 1rem; color: #222; background: #fff }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: .8rem }
figure { margin: 0 }
figure img, figure audio { width: 100% }
figcaption, .facts, .note { color: #555; font-size: 13px }
h2 { margin-top: 2.5rem; font-size: 1.1rem }
pre { white-space: pre-wrap }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #161616 } th, td { border-color: #333 } figcaption, .facts, .note { color: #aaa }
}
"""


def write_gallery(folder: Path, report: Report, shown: int) -> Path:
    """Write index.html into `folder`, with a spectrogram and a player of up to `shown` clips (evenly chosen) of every row."""
    rows = [row for kind in ("references", "codec", "outputs") for row in report.rows if row.kind == kind]
    body = [f"<h1>Evaluation</h1><pre class='facts'>{escape(report.facts_text())}</pre>"]
    for extractor in report.extractors:
        body.append(f"<h2>{escape(extractor['name'])}</h2>" + _table(*report.numbers_table(extractor["name"])))
    found = {key for row in report.rows for numbers in row.numbers.values() for key in numbers}
    meant = [f"{head}: {what}" for key, (head, what) in NUMBERS.items() if key in found]
    body.append(f"<p class='note'>{escape('; '.join(meant))}</p>")
    body.append("<h2>Signal checks</h2>" + _table(*report.signal_table()))
    body += [f"<p class='note'>{escape(note)}</p>" for note in report.notes]
    lead = next((row for row in rows if row.kind == "references"), rows[0])
    chosen = (
        lead.made.sounds if len(lead.made.sounds) <= shown else [lead.made.sounds[k * len(lead.made.sounds) // shown] for k in range(shown)]
    )
    for sound in chosen:
        body.append(f"<h2>{escape(sound.caption or sound.name)}</h2><p class='facts'>{escape(sound.name)}</p><div class='clips'>")
        body += [_figure(folder, row, number, found) for number, row in enumerate(rows) for found in _beside(row, lead, sound)]
        body.append("</div>")
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Evaluation</title>'
        '<meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<style>{STYLE}</style></head><body>"
    )
    write_text(folder / "index.html", head + "\n".join(body) + "</body></html>\n")
    return folder / "index.html"


def _beside(row: Row, lead: Row, sound: Sound) -> list[Sound]:
    """Clips of `row` that are shown beside a clip of the leading row: the first of its pair, or of its name where nothing is paired."""
    if row is lead:
        return [sound]
    return [s for s in row.made.sounds if (s.pair or s.name) == sound.name][:1]


def _figure(folder: Path, row: Row, number: int, sound: Sound) -> str:
    """A player and a spectrogram; a sound outside `folder` is copied into it, so that the folder can be moved."""
    rate, _ = file_facts(sound.path)
    audio = load_audio(sound.path, rate)
    stem = folder / "gallery" / f"{number}-{stem_of(sound.name)}"
    path = sound.path
    if not path.resolve().is_relative_to(folder.resolve()):
        path = save_audio(stem.with_name(stem.name + ".wav"), limit_peak(audio, 1.0), rate)
    picture = stem.with_name(stem.name + ".png")
    save_spectrogram(picture, audio, rate)
    several = len(row.clip_numbers) > 1
    details = [
        f"{f'{extractor} ' if several else ''}{NUMBERS[key][0]} {value:.2f}"
        for extractor, clips in row.clip_numbers.items()
        for key, value in clips.get(sound.name, {}).items()
    ]
    details += row.signals[sound.name].faults
    label = escape(", ".join([row.label, *details]))
    return (
        f"<figure><img src='{_link(picture, folder)}' alt='Spectrogram' loading='lazy'>"
        f"<audio controls preload='none' src='{_link(path, folder)}'></audio><figcaption>{label}</figcaption></figure>"
    )


def _link(path: Path, folder: Path) -> str:
    return escape(quote(relative(path.resolve(), folder.resolve())), quote=True)


def _table(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = ["<table><tr>" + "".join(f"<th>{escape(head)}</th>" for head in heads) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in cells]
    return "\n".join(lines) + "</table>"
