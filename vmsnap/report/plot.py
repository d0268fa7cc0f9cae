# SPDX-License-Identifier: Apache-2.0
"""One session as a picture: a standalone SVG with the whole session above, and below it what lies
between freeze and thaw, each to its own scale.

What happened is read from the result's timeline. Colours stand in the style sheet only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from xml.sax.saxutils import escape

from vmsnap.report import text as report
from vmsnap.report.summary import script_words, summary
from vmsnap.result import FROZEN_PHASES, FilesystemResult, Result, ScriptResult
from vmsnap.system.printable import printable

WIDTH, MARGIN, TOP = 1000, 24, 146  # pixels, as all that follows; the panels begin at TOP
LEFT, RIGHT, NOTES = 340, 970, 324  # of what is to scale; left of it end the notes, then the labels
ROW, BAR, HEAD, GAP, LINE = 20, 12, 26, 34, 18
LABEL, SENTENCE = 28, 140  # characters
MARKS = ("attempt", "synced")  # moments: they have no length
LEGEND = (
    *("phase", "script", "attempt", "snapshot", "freeze", "held", "thaw", "synced"),
    *("write stall", "failed"),
)
# Contrast to the page as WCAG 2 level AA asks: 4.5 of text, 3 of bars.
STYLE = """\
text { font: 12px system-ui, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif }
.strong { font-weight: 600 } .large { font-size: 18px }
.middle { text-anchor: middle } .end { text-anchor: end } .band { opacity: 0.18 }
.page { fill: #ffffff } .lens { fill: #f0f3f6 } .grid { fill: #d8dee4 } .phase { fill: #818b98 }
.text, .attempt { fill: #1f2328 } .dim { fill: #59636e } .failed { fill: #cf222e }
.script { fill: #8250df } .snapshot, .success { fill: #1a7f37 } .stall { fill: #bf3989 }
.freeze, .synced { fill: #0550ae } .held { fill: #3a94e0 } .thaw { fill: #b07c00 }
@media (prefers-color-scheme: dark) {
.page { fill: #0d1117 } .lens { fill: #1a2029 } .grid { fill: #2a313c } .phase { fill: #6e7681 }
.text, .attempt { fill: #e6edf3 } .dim { fill: #9198a1 } .failed { fill: #f85149 }
.script { fill: #a371f7 } .snapshot, .success { fill: #3fb950 } .stall { fill: #db61a2 }
.freeze, .synced { fill: #1f6feb } .held { fill: #79c0ff } .thaw { fill: #d29922 }
}"""


@dataclass(frozen=True)
class Bar:
    """From `begin` to `end`, in seconds since the start. `kind` is its class in the style sheet."""

    kind: str
    begin: float
    end: float
    words: str

    @property
    def title(self) -> str:
        if self.kind in MARKS:
            return f"{self.words}: {self.begin:.6f} s"
        length = report.duration(self.end - self.begin)
        return f"{self.words}: {self.begin:.6f} s to {self.end:.6f} s, {length}"


@dataclass(frozen=True)
class Row:
    label: str
    note: str
    bars: tuple[Bar, ...]
    indent: int = 0


@dataclass(frozen=True)
class Panel:
    """Rows over one axis, which counts the seconds from `begin`."""

    name: str
    heading: str
    top: int
    begin: float
    end: float
    rows: tuple[Row, ...]

    @property
    def seconds(self) -> float:
        return max(self.end - self.begin, 1e-6)

    @property
    def bottom(self) -> int:
        return self.top + HEAD + ROW * len(self.rows)

    def x(self, at: float) -> float:
        return LEFT + min(max((at - self.begin) / self.seconds, 0.0), 1.0) * (RIGHT - LEFT)


@dataclass(frozen=True)
class Story:
    """What the timeline tells."""

    result: Result

    @cached_property
    def phases(self) -> dict[str, tuple[float, float]]:
        return {name: (begin, end) for name, begin, end in self.result.phases()}

    @cached_property
    def moments(self) -> dict[tuple[str, str], float]:
        """By event and subject, the first time."""
        return {(e.event, e.subject): e.at for e in reversed(self.result.timeline)}

    def times(self, event: str) -> list[float]:
        return [e.at for e in self.result.timeline if e.event == event]

    def stall(self) -> Iterator[Row]:
        """From the first freeze to the last thaw; to the end if what was frozen stayed it."""
        begin, ends = min(self.times("freezing"), default=0.0), self.times("thawed")
        if ends or self.times("frozen"):
            end = max(ends, default=self.result.seconds)
            bar = Bar("stall", begin, end, "write stall")
            yield Row("write stall", report.duration(end - begin), (bar,))


def svg(result: Result) -> str:
    """The whole document."""
    panels = tuple(make_panels(Story(result)))
    bottom = (panels[-1].bottom if panels else TOP) + LINE
    height = bottom + LINE * (len(result.errors) + 1)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img" aria-labelledby="title desc">',
        f'<title id="title">vmsnap session {clean(result.session)}</title>',
        f'<desc id="desc">{clean(one_line(summary(result, report.Paint(False))))}</desc>',
        f"<style>\n{STYLE}\n</style>",
        f'<clipPath id="labels"><rect width="{NOTES - 110}" height="{height}"/></clipPath>',
        rect("page", 0, 0, WIDTH, height),
        *header(result),
        *(lens(*panels) if len(panels) == 2 else ()),
        *(line for panel in panels for line in draw(panel)),
        *(() if panels else (text(MARGIN, TOP, "dim", "This session left no timeline."),)),
        *errors(result, bottom + LINE // 2),
    ]
    return "\n".join([*lines, "</svg>"])


# --- what there is to draw ---------------------------------------------------------------------


def make_panels(story: Story) -> Iterator[Panel]:
    """The second one only if there was anything to freeze."""
    if not story.phases:
        return
    whole = Panel(
        "session", "Whole session", TOP, 0.0, story.result.seconds, tuple(session_rows(story))
    )
    yield whole
    spans = [story.phases[name] for name in FROZEN_PHASES if name in story.phases]
    if spans and story.times("freezing"):
        begin, end = min(b for b, _ in spans), max(e for _, e in spans)
        rows = (*story.stall(), *filesystem_rows(story, end), *snapshot_rows(story))
        heading = f"Freeze to thaw, from {report.duration(begin)} on"
        yield Panel("frozen", heading, whole.bottom + GAP, begin, end, rows)


def session_rows(story: Story) -> Iterator[Row]:
    for phase, (begin, end) in story.phases.items():
        bar = Bar("phase", begin, end, f"phase {phase}")
        yield Row(phase, report.duration(end - begin), (bar,))
        if phase in ("pre", "post"):
            for app in story.result.apps:
                script = app.pre if phase == "pre" else app.post
                yield script_row(story, phase, app.name, script)
        if phase == "snapshot":
            yield from snapshot_rows(story, 1)
    yield from story.stall()


def script_row(story: Story, phase: str, app: str, script: ScriptResult | None) -> Row:
    words = f"{phase}-script of {app}"
    marks = tuple(
        Bar("attempt", e.at, e.at, f"{e.event.partition('-')[2]} of the {words}")
        for e in story.result.timeline
        if e.subject == app and e.event.startswith(f"{phase}-attempt ")
    )
    if script is None:
        return Row(app, "" if marks else "not run", marks, 1)
    begin = marks[0].begin if marks else story.phases[phase][0]
    # Not to its `-ended`: all of those are from when the last app's script had ended.
    end, ok = begin + script.seconds, script.exit == 0 and not script.timed_out
    bar = Bar("script" if ok else "failed", begin, end, f"{words}, {script_words(script)}")
    return Row(app, took(script.seconds, ok), (bar, *marks), 1)


def snapshot_rows(story: Story, indent: int = 0) -> Iterator[Row]:
    """Taken by a command, or by the caller of `vmsnap freeze`."""
    if "snapshot" not in story.phases:
        return
    begin, end = story.phases["snapshot"]
    end = min(story.times("snapshot-ended"), default=end)
    command = story.result.snapshot
    ok = command.exit == 0 if command else story.result.snapshot_taken
    argv = command.command if command and command.command else ("the caller",)
    bar = Bar("snapshot" if ok else "failed", begin, end, f"snapshot by {' '.join(argv)}")
    yield Row(f"snapshot by {argv[0].rpartition('/')[2]}", took(end - begin, ok), (bar,), indent)


def filesystem_rows(story: Story, end: float) -> list[Row]:
    """In the order of the freeze. What did not thaw is drawn to the `end`."""

    def order(fs: FilesystemResult) -> float:
        return story.moments.get(("freezing", fs.mount), math.inf)

    return [filesystem_row(story, fs, end) for fs in sorted(story.result.filesystems, key=order)]


def filesystem_row(story: Story, fs: FilesystemResult, end: float) -> Row:
    freezing, frozen, synced, thawed = (
        story.moments.get((event, fs.mount)) for event in ("freezing", "frozen", "synced", "thawed")
    )
    error = f" ({fs.error})" if fs.error else ""
    if freezing is None and synced is None:
        return Row(fs.mount, "not frozen", ())
    if freezing is None:
        at = synced or 0.0
        return Row(fs.mount, "synced", (Bar("synced", at, at, f"{fs.mount} synced{error}"),))
    gone = end if thawed is None else thawed
    release = min([gone, *story.times("thawing")])
    if frozen is None:
        words = f"freeze of {fs.mount} failed{error}"
        return Row(fs.mount, "failed", (Bar("failed", freezing, max(release, freezing), words),))
    release = max(release, frozen)
    bars = (
        Bar("freeze", freezing, frozen, f"freeze of {fs.mount}"),
        Bar("held", frozen, release, f"{fs.mount} held"),
        Bar("failed" if thawed is None else "thaw", release, gone, f"thaw of {fs.mount}{error}"),
    )
    return Row(fs.mount, took(gone - freezing, thawed is not None), bars)


def took(seconds: float, ok: bool) -> str:
    return ("" if ok else "failed, ") + report.duration(seconds)


# --- drawing -----------------------------------------------------------------------------------


def header(result: Result) -> Iterator[str]:
    yield text(MARGIN, 40, "text strong large", f"Session {result.session}")
    for x, kind, name, value in (
        (MARGIN, "success" if result.ok else "failed", "Outcome", result.outcome),
        (150, "text", "Consistency", f"{result.consistency} (required: {result.required})"),
        (440, "text", "Started", result.started),
        (720, "text", "Took", report.duration(result.seconds)),
        (860, "text", "Writes stalled for", report.duration(result.frozen_seconds)),
    ):
        yield text(x, 70, "dim", name)
        yield text(x, 89, f"{kind} strong", value)
    x = MARGIN
    for name in LEGEND:
        width = 3 if name in MARKS else BAR
        yield rect(name.rpartition(" ")[2], x, 108, width, BAR)
        yield text(x + width + 6, 118, "dim", name)
        x += width + 30 + 7 * len(name)


def draw(panel: Panel) -> Iterator[str]:
    top = panel.top + HEAD
    yield f'<g id="{panel.name}">'
    yield text(MARGIN, panel.top + 15, "text strong", panel.heading)
    for at, label in ticks(panel.seconds):
        x = panel.x(panel.begin + at)
        yield text(x, panel.top + 15, "dim middle", label)
        yield rect("grid", x - 0.5, top - 5, 1, panel.bottom - top + 5)
    for bar in (bar for row in panel.rows for bar in row.bars if bar.kind == "stall"):
        x, width = extent(panel, bar)
        yield rect("stall band", x, top, width, panel.bottom - top)
        yield from (rect("stall", edge, top, 1, panel.bottom - top) for edge in (x, x + width - 1))
    for number, row in enumerate(panel.rows):
        yield from draw_row(panel, row, top + number * ROW)
    yield "</g>"


def draw_row(panel: Panel, row: Row, top: int) -> Iterator[str]:
    label = text(MARGIN + 14 * row.indent, top + 14, "text", short(row.label), row.label)
    yield f'<g clip-path="url(#labels)">{label}</g>'  # wide letters
    yield text(NOTES, top + 14, "dim end", row.note)
    for bar in row.bars:
        height = ROW - 2 if bar.kind in MARKS else BAR
        x, width = extent(panel, bar)
        yield rect(bar.kind, x, top + (ROW - height) / 2, width, height, bar.title)


def extent(panel: Panel, bar: Bar) -> tuple[float, float]:
    """Left edge and width. What is shorter than a pixel can still be seen."""
    x = panel.x(bar.begin)
    return x, max(panel.x(bar.end) - x, 2.0 if bar.kind in MARKS else 1.0)


def ticks(seconds: float) -> Iterator[tuple[float, str]]:
    """Round places on an axis from 0: at most eleven, in steps of 1, 2 or 5 times ten to the n."""
    scale, unit = (1, "s") if seconds >= 1 else (1000, "ms")
    least = seconds * scale / 10
    magnitude = 10.0 ** math.floor(math.log10(least))
    step = next(magnitude * n for n in (1, 2, 5, 10) if magnitude * n >= least)
    digits = max(-math.floor(math.log10(step * 1.001)), 0)
    for number in range(math.floor(seconds * scale / step) + 1):
        yield number * step / scale, f"{number * step:.{digits}f} {unit}"


def lens(whole: Panel, part: Panel) -> Iterator[str]:
    """What shows that one panel is a piece of the other."""
    left, right = whole.x(part.begin), whole.x(part.end)
    points = f"{left:.2f},{whole.bottom} {right:.2f},{whole.bottom} {RIGHT},{part.top}"
    yield f'<polygon class="lens" points="{points} {LEFT},{part.top}"/>'


def errors(result: Result, top: int) -> Iterator[str]:
    for number, error in enumerate(result.errors):
        words = one_line(f"{error.name} {error.code} in phase {error.phase}: {error.message}")
        yield text(MARGIN, top + number * LINE, "failed", report.cut(words, SENTENCE), words)


def short(name: str) -> str:
    """The ends of mount points tell them apart."""
    return name if len(name) <= LABEL else f"{name[:8]}…{name[9 - LABEL :]}"


def one_line(words: str) -> str:
    return " ".join(words.split())


def rect(kind: str, x: float, y: float, width: float, height: float, title: str = "") -> str:
    place = f'x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}"'
    return f'<rect class="{kind}" {place}>{tooltip(title)}</rect>'


def text(x: float, y: int, kind: str, words: str, title: str = "") -> str:
    return f'<text class="{kind}" x="{x:.2f}" y="{y}">{tooltip(title)}{clean(words)}</text>'


def tooltip(words: str) -> str:
    return f"<title>{clean(words)}</title>" if words else ""


def clean(words: str) -> str:
    """XML 1.0 forbids some of what is not printable; nobody could read the rest of it either."""
    return escape(printable(words))
