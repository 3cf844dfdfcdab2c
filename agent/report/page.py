"""Write a report: one HTML file with everything in it.

Names, settings and results come from files and are data: Jinja2 escapes them, also in the JSON of the charts.
A content security policy allows only the scripts of this package, by their hash, and no network request at all.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from lssvwm.agent.checkpoint import STAGES
from lssvwm.agent.errors import UserError
from lssvwm.agent.files import replacing
from lssvwm.agent.report import static_charts, tables
from lssvwm.agent.report.charts import (
    PALETTE,
    Chart,
    Column,
    arms_chart,
    curve_charts,
    rate_charts,
)
from lssvwm.agent.report.collect import (
    RunData,
    Video,
    collect,
    first_line,
    is_number,
)
from lssvwm.agent.report.settings_table import setting_rows
from markupsafe import Markup

HERE = Path(__file__).parent
NAME = "report.html"
"""Name of a report in the folder of its run."""
MAX_BYTES = 10_000_000
"""Size of a report; videos that do not fit are named instead."""
BOKEH = ("bokeh.min.js", "bokeh-api.min.js")
"""Scripts of Bokeh that draw the charts."""
EXTRA = "pip install 'lssvwm[report]'"


@dataclasses.dataclass(frozen=True)
class Clip:
    """Hold a video of the page; `source` is None if it does not fit."""

    run: str
    video: Video
    source: str | None

    @property
    def caption(self) -> str:
        """Return the file of the video, and how its episode ended."""
        about = self.video.about
        parts = [self.video.path.name]
        if "mode" in about:
            parts += [about["mode"], "solved" if about.get("success") else "not solved"]
        psnr = about.get("mean_psnr")
        if isinstance(psnr, dict) and is_number(psnr.get("imagined")):
            parts.append(f"imagined frames {psnr['imagined']:.2f} dB")
        return ", ".join(map(str, parts))


def write_report(folders: Sequence[Path], output: Path | None = None) -> Path:
    """Write the report of one or several runs; returns its file.

    `output` defaults to report.html in the folder of the run, or in the folder above all runs.
    Raises UserError if a folder has no results, or if there are too many.
    """
    if len(folders) > len(PALETTE):
        raise UserError(f"a report compares at most {len(PALETTE)} runs: name fewer")
    runs = [collect(folder) for folder in folders]
    _distinguish(runs)
    file = output or _default_file(folders)
    if file.is_dir():
        raise UserError(f"cannot write {file}: it is a folder; name a file in it")
    if not file.parent.is_dir():
        raise UserError(f"cannot write {file}: there is no folder {file.parent}")
    content = _content(runs)
    empty = len(_render(content, [])) if any(run.videos for run in runs) else 0
    page = _render(content, _clips(runs, MAX_BYTES - empty))
    with replacing(file) as draft:
        draft.write_text(page, encoding="utf-8")
    return file


def update(folder: Path) -> str:
    """Write the report of a run; returns one line: its path, or the failure."""
    try:
        return f"report: {write_report([folder])}"
    except Exception as error:  # results are complete, whatever is wrong with the page
        return f"no report: {first_line(error)}"


def home(folder: Path) -> Path:
    """Return the folder whose report shows a stage of a run, or a run."""
    return folder.parents[1] if folder.parent.name == STAGES else folder


def _default_file(folders: Sequence[Path]) -> Path:
    if len(folders) == 1:
        return folders[0] / NAME
    parents = [folder.absolute().parent for folder in folders]
    shared, here = Path(os.path.commonpath(parents)), Path.cwd()
    return (shared.relative_to(here) if shared.is_relative_to(here) else shared) / NAME


def _distinguish(runs: Sequence[RunData]) -> None:
    """Name runs by their whole path where folders of several have the same name."""
    names = [run.label for run in runs]
    for run in runs:
        if names.count(run.label) > 1:
            run.label = str(run.folder)


# ---- content


def _content(runs: Sequence[RunData]) -> dict[str, Any]:
    """Return everything that the template shows, except videos."""
    measured = tables.measured(runs)
    curves, more_curves = curve_charts(runs)
    rates = rate_charts(_columns(runs, measured))
    arms = [arms_chart(_columns(runs, measured))] if measured else []
    rows = setting_rows([run.config for run in runs])
    return {
        "runs": runs,
        "colours": PALETTE,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "first_settings": [row for row in rows if row.first],
        "other_settings": [row for row in rows if not row.first],
        "curves": curves,
        "more_curves": more_curves,
        "measured": measured,
        "arms": arms,
        "rates": rates,
        "memory": tables.memory_grid(measured),
        "trained": [tables.trained(run) for run in runs],
        "timing": tables.timing_grid(runs),
        "origins": tables.origin_grid(runs),
        "versions": tables.version_grid(),
        "commands": {run.label: tables.commands(run) for run in runs},
        **_drawing([*curves, *more_curves, *arms, *rates]),
    }


def _columns(
    runs: Sequence[RunData], measured: Sequence[tables.Measured]
) -> list[Column]:
    """Return evaluations with their colours: those of their runs, unless a run has several."""
    colours = {id(run): colour for run, colour in zip(runs, PALETTE)}
    columns = []
    for number, one in enumerate(measured):
        colour = colours[id(one.run)]
        if len(measured) > len(runs):
            colour = PALETTE[number % len(PALETTE)]
        columns.append(Column(one.name, colour, one.result.found))
    return columns


def _drawing(charts: Sequence[Chart]) -> dict[str, Any]:
    """Return the scripts that draw charts, or images of them without Bokeh."""
    scripts = _scripts()
    images = (
        {} if scripts else {chart.key: static_charts.draw(chart) for chart in charts}
    )
    hashes = [hashlib.sha256(script.encode()).digest() for script in scripts]
    allowed = [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in hashes]
    return {
        "scripts": [Markup(script) for script in scripts],
        "allowed": Markup(" ".join(allowed) or "'none'"),
        "charts": [dataclasses.asdict(chart) for chart in charts] if scripts else [],
        "images": images,
        "extra": EXTRA,
    }


def _scripts() -> list[str]:
    """Return the scripts of a page with interactive charts; empty without Bokeh."""
    found = find_spec("bokeh")
    if found is None or not found.submodule_search_locations:
        return []
    folder = Path(found.submodule_search_locations[0]) / "server" / "static" / "js"
    files = [*(folder / name for name in BOKEH), HERE / "page.js"]
    return [_inline(file.read_text(encoding="utf-8")) for file in files]


def _inline(script: str) -> str:
    """Return a script that no text in it can end."""
    lines = [line for line in script.splitlines() if "sourceMappingURL" not in line]
    return "\n".join(lines).replace("</script", "<\\/script")


def _clips(runs: Sequence[RunData], room: int) -> list[Clip]:
    """Return the videos of all runs in turns, as many as fit with their data."""
    longest = max((len(run.videos) for run in runs), default=0)
    turns = [(i, run) for i in range(longest) for run in runs if i < len(run.videos)]
    clips = []
    for i, run in turns:
        video = run.videos[i]
        size = video.path.stat().st_size * 4 // 3 + 2000
        fits = size <= room
        if fits:
            room -= size
        clips.append(Clip(run.label, video, _address(video.path) if fits else None))
    return clips


def _address(file: Path) -> str:
    return "data:video/mp4;base64," + base64.b64encode(file.read_bytes()).decode()


def _render(content: dict[str, Any], clips: Sequence[Clip]) -> str:
    style = Markup((HERE / "page.css").read_text(encoding="utf-8"))
    return _template().render(content, clips=clips, style=style)


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")
