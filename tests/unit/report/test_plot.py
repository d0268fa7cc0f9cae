# SPDX-License-Identifier: Apache-2.0
"""The picture of a session: to scale, complete, readable in light and dark, well-formed always."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsnap.errors import Kind, Problem
from vmsnap.report.plot import STYLE, svg, ticks
from vmsnap.result import (
    AppResult,
    FilesystemResult,
    Result,
    ScriptResult,
    SnapshotResult,
    TimelineEvent,
    error_result,
    refused,
)

from ..test_result import FULL, RESULTS

MOUNTS = ("/srv", "/")
PHASE_BEGINS = {
    **{"check": 0.0, "pre": 0.5, "presync": 4.0, "freeze": 5.0, "snapshot": 5.006},
    **{"thaw": 5.014, "post": 5.02, "report": 9.0},
}
EVENTS = (
    *((at, phase, "") for phase, at in PHASE_BEGINS.items()),
    *((0.5, "pre-attempt 1", "db"), (2.5, "pre-attempt 2", "db"), (0.5, "pre-attempt 1", "web")),
    *((4.0, "pre-ended", "db"), (4.0, "pre-ended", "web")),
    *((5.1, "post-attempt 1", "db"), (7.1, "post-ended", "db")),
    *((5.001, "freezing", "/srv"), (5.002, "frozen", "/srv"), (5.016, "thawed", "/srv")),
    *((5.002, "freezing", "/"), (5.004, "frozen", "/"), (5.015, "thawed", "/")),
    *((5.003, "synced", "/efi"), (5.005, "held", "")),
    *((5.013, "snapshot-ended", ""), (5.014, "thawing", "asked")),
)
DB = AppResult(
    "db", "/db", ScriptResult(2, 0, None, 3.0, False), ScriptResult(1, 0, None, 2.0, False)
)
WEB = AppResult("web", "/web", ScriptResult(1, 7, None, 1.0, False), None)
FILESYSTEMS = tuple(
    FilesystemResult(mount, "ext4", "8:1", 1, 1.0, 1.0, 1.0, None) for mount in (*MOUNTS, "/efi")
)
SESSION = replace(
    FULL,
    seconds=10.0,
    frozen_seconds=0.015,
    apps=(DB, WEB),
    filesystems=FILESYSTEMS,
    snapshot=SnapshotResult(("/sbin/lvcreate", "-s"), 0, 0.007),
    timeline=tuple(TimelineEvent(*event) for event in sorted(EVENTS)),
)
EARLY = replace(
    SESSION,
    filesystems=(),
    snapshot=None,
    consistency="none",
    seconds=0.25,
    timeline=(TimelineEvent(0.0, "check", ""), TimelineEvent(0.2, "report", "")),
)
REFUSED = refused(Problem(Kind.SESSION_IN_PROGRESS, "another one", "check"))
SVG = "{http://www.w3.org/2000/svg}"
SIZES = ("x", "width")


@dataclass(frozen=True)
class Drawn:
    """A bar as somebody sees it who points at it."""

    kind: str
    title: str
    x: float
    width: float


def tree(result: Result) -> ElementTree.Element:
    return ElementTree.fromstring(svg(result))


def panel(result: Result, name: str) -> ElementTree.Element | None:
    return tree(result).find(f"{SVG}g[@id='{name}']")


def drawn(result: Result, name: str = "session") -> list[Drawn]:
    found = panel(result, name)
    assert found is not None
    return [
        Drawn(rect.attrib["class"], title.text or "", *map(float, (rect.attrib[a] for a in SIZES)))
        for rect in found.iter(f"{SVG}rect")
        if (title := rect.find(f"{SVG}title")) is not None
    ]


def bar(result: Result, beginning: str, name: str = "session") -> Drawn:
    (found,) = [d for d in drawn(result, name) if d.title.startswith(beginning)]
    return found


def words(result: Result) -> list[str]:
    """All text that is shown without pointing at anything."""
    return [(e[-1].tail if len(e) else e.text) or "" for e in tree(result).iter(f"{SVG}text")]


def styles(dark: bool) -> Iterator[tuple[str, str]]:
    """(class, colour)"""
    for names, colour in re.findall(
        r"([.\w, ]+) \{ fill: (#\w{6}) \}", STYLE.partition("@media")[2 if dark else 0]
    ):
        yield from ((name.strip(" ."), colour) for name in names.split(","))


# --- to scale ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "left", "right", "ratio"),
    [
        ("session", "phase pre:", "phase presync:", 3.5),
        ("session", "phase post:", "phase report:", 3.98),
        ("session", "pre-script of db", "pre-script of web", 3.0),
        ("session", "pre-script of db", "phase pre:", 3.0 / 3.5),
        ("frozen", "freeze of /:", "freeze of /srv:", 2.0),
        ("frozen", "/srv held", "thaw of /srv", 6.0),
        ("frozen", "snapshot by", "thaw of /:", 7.0),
        ("frozen", "write stall", "thaw of /:", 15.0),
    ],
)
def test_bars_are_as_long_as_what_they_stand_for(
    name: str, left: str, right: str, ratio: float
) -> None:
    found = bar(SESSION, left, name).width / bar(SESSION, right, name).width
    assert found == pytest.approx(ratio, rel=0.01)


def test_each_phase_begins_where_the_one_before_it_ends() -> None:
    phases = [d for d in drawn(SESSION) if d.kind == "phase"]
    ends = [d.x + d.width for d in phases if d.width > 1]
    begins = [d.x for d in phases]
    assert all(min(abs(end - begin) for begin in [*begins, 970]) < 1 for end in ends)


@pytest.mark.parametrize("name", ["session", "frozen"])
def test_the_write_stall_is_marked_from_the_first_freeze_to_the_last_thaw(name: str) -> None:
    found = panel(SESSION, name)
    assert found is not None
    (band,) = found.findall(f"{SVG}rect[@class='stall band']")
    stall = bar(SESSION, "write stall: 5.001000 s to 5.016000 s, 15.0 ms", name)
    assert [float(band.attrib[a]) for a in SIZES] == [stall.x, stall.width]
    assert {"write stall", "15.0 ms"} <= set(words(SESSION))


def test_the_write_stall_covers_every_filesystem_and_the_snapshot() -> None:
    stall = bar(SESSION, "write stall", "frozen")
    inner = [d for d in drawn(SESSION, "frozen") if d.kind in ("freeze", "held", "thaw")]
    assert min(d.x for d in inner) == stall.x
    assert max(d.x + d.width for d in inner) == pytest.approx(stall.x + stall.width, abs=0.02)


def test_what_is_shorter_than_a_pixel_can_be_seen() -> None:
    assert min(d.width for d in drawn(SESSION)) == 1.0


@given(st.floats(min_value=1e-6, max_value=1e6))
def test_every_axis_has_a_few_round_ticks_within_it(seconds: float) -> None:
    found = list(ticks(seconds))
    places = [at for at, _ in found]
    assert places[0] == 0.0
    assert 3 <= len(found) <= 11
    assert places[-1] <= seconds * (1 + 1e-9)
    assert f"{places[1]:e}"[0] in "125"
    assert len({label for _, label in found}) == len(found)
    assert {label.split()[1] for _, label in found} == {"s" if seconds >= 1 else "ms"}


# --- complete ----------------------------------------------------------------------------------


def test_every_phase_app_and_filesystem_has_its_row() -> None:
    assert {*PHASE_BEGINS, "db", "web", *MOUNTS, "/efi", "snapshot by lvcreate"} <= set(
        words(SESSION)
    )


def test_every_attempt_is_marked_when_it_began() -> None:
    assert [d.title for d in drawn(SESSION) if d.kind == "attempt"] == [
        "attempt 1 of the pre-script of db: 0.500000 s",
        "attempt 2 of the pre-script of db: 2.500000 s",
        "attempt 1 of the pre-script of web: 0.500000 s",
        "attempt 1 of the post-script of db: 5.100000 s",
    ]


def test_a_failed_script_looks_different_and_says_why() -> None:
    kinds = {d.title.split(",")[0]: d.kind for d in drawn(SESSION) if "-script of" in d.title}
    assert kinds["pre-script of db"] == "script"
    assert kinds["pre-script of web"] == "failed"
    assert "failed, 1.00 s" in words(SESSION)
    assert "not run" in words(SESSION)


def test_filesystems_stand_in_the_order_of_the_freeze() -> None:
    assert [d.kind for d in drawn(SESSION, "frozen")] == [
        *("stall", "freeze", "held", "thaw", "freeze", "held", "thaw", "synced", "snapshot")
    ]


def test_the_header_says_what_matters_most() -> None:
    assert {
        f"Session {SESSION.session}",
        SESSION.outcome,
        "crash (required: application)",
        SESSION.started,
        "10.00 s",
        "15.0 ms",
    } <= set(words(SESSION))


def test_each_error_is_named_with_its_phase_and_cut_to_the_width() -> None:
    long = error_result(Problem(Kind.THAW_FAILED, "so\nlong " * 100, "thaw", "/srv"))
    both = replace(SESSION, errors=(*SESSION.errors, long))
    lines = [w for w in words(both) if " in phase " in w]
    assert [re.sub(r"\d+ ", "", line).partition(":")[0] for line in lines] == [
        "FreezeFailed in phase freeze",
        "ThawFailed in phase thaw",
    ]
    assert max(map(len, lines)) == 140


def test_mount_points_that_end_differently_stay_apart() -> None:
    mounts = [f"/var/lib/a/very/long/way/to/the/data/{n}" for n in range(3)]
    filesystems = tuple(replace(FILESYSTEMS[0], mount=mount) for mount in mounts)
    shown = [w for w in words(replace(SESSION, filesystems=filesystems)) if w.startswith("/var")]
    assert len(set(shown)) == 3
    assert max(map(len, shown)) <= 28


def test_many_filesystems_make_the_picture_taller_and_no_wider() -> None:
    many = replace(
        SESSION, filesystems=tuple(replace(FILESYSTEMS[0], mount=f"/{n}") for n in range(64))
    )
    few, tall = tree(SESSION), tree(many)
    assert int(tall.attrib["height"]) - int(few.attrib["height"]) == 61 * 20
    assert tall.attrib["width"] == few.attrib["width"]
    assert {f"/{n}" for n in range(64)} <= set(words(many))


# --- sessions that went otherwise --------------------------------------------------------------


def without(*events: tuple[str, str]) -> Result:
    left = tuple(e for e in SESSION.timeline if (e.event, e.subject) not in events)
    return replace(SESSION, timeline=left)


def test_a_session_that_failed_early_has_no_panel_of_the_freeze() -> None:
    assert panel(EARLY, "frozen") is None
    assert [d.title.partition(":")[0] for d in drawn(EARLY)] == ["phase check", "phase report"]


def test_a_refused_session_says_why_and_draws_nothing() -> None:
    assert panel(REFUSED, "session") is None
    assert "This session left no timeline." in words(REFUSED)
    assert any(w.startswith("SessionInProgress") for w in words(REFUSED))


def test_a_held_session_shows_that_its_caller_took_the_snapshot() -> None:
    found = bar(replace(SESSION, snapshot=None), "snapshot by the caller", "frozen")
    assert (found.kind, found.title) == (
        "snapshot",
        "snapshot by the caller: 5.006000 s to 5.013000 s, 7.0 ms",
    )


def test_a_filesystem_that_did_not_thaw_is_marked_to_the_end() -> None:
    found = bar(without(("thawed", "/srv")), "thaw of /srv", "frozen")
    assert found.kind == "failed"
    assert found.x + found.width == pytest.approx(970, abs=0.02)


def test_when_nothing_thawed_the_stall_goes_on_to_the_end() -> None:
    result = without(("thawed", "/srv"), ("thawed", "/"))
    assert "to 10.000000 s" in bar(result, "write stall").title


def test_a_filesystem_that_did_not_freeze_says_what_was_wrong() -> None:
    busy = replace(FILESYSTEMS[1], error="Device or resource busy")
    result = replace(without(("frozen", "/"), ("thawed", "/")), filesystems=(FILESYSTEMS[0], busy))
    found = bar(result, "freeze of / failed (Device or resource busy)", "frozen")
    assert found.kind == "failed"


def test_a_filesystem_whose_turn_never_came_is_there_all_the_same() -> None:
    result = without(("freezing", "/"), ("frozen", "/"), ("thawed", "/"))
    assert {"/", "not frozen"} <= set(words(result))


@given(RESULTS)
def test_any_result_can_be_drawn(result: Result) -> None:
    assert tree(result).tag == f"{SVG}svg"


@given(st.text(max_size=40) | st.sampled_from(["\0", "\x1b[2J", "\udcff", "\ufffe", "]]>", "\x85"]))
def test_no_name_breaks_the_document(name: str) -> None:
    result = replace(
        SESSION,
        session=name,
        outcome=name,
        apps=(replace(DB, name=name),),
        filesystems=(replace(FILESYSTEMS[0], mount=name, error=name),),
        snapshot=SnapshotResult((name, name), 0, 1.0),
        errors=(replace(SESSION.errors[0], name=name, phase=name, message=name),),
        timeline=tuple(
            replace(e, subject=name if e.subject in ("/srv", "db") else e.subject)
            for e in SESSION.timeline
        ),
    )
    assert len(list(tree(result).iter(f"{SVG}rect"))) > len(PHASE_BEGINS)


def test_markup_in_names_is_shown_as_it_is() -> None:
    name = """<b>&"'</b>]]>"""
    assert name in words(replace(SESSION, apps=(replace(DB, name=name),)))


# --- for everybody -----------------------------------------------------------------------------


def test_the_picture_needs_nothing_from_elsewhere_and_runs_nothing() -> None:
    text = svg(SESSION)
    assert re.findall(r"https?://[^\"]*", text) == ["http://www.w3.org/2000/svg"]
    assert re.findall(r"<script|href|@import|@font-face|url\((?!#labels)|\bon\w+=", text) == []


def test_colours_are_in_the_style_sheet_only_and_every_one_is_there_for_the_dark_too() -> None:
    body = svg(SESSION).partition("</style>")[2]
    assert re.findall(r"#[0-9a-f]{6}|style=|fill=|stroke=", body) == []
    assert "@media (prefers-color-scheme: dark)" in STYLE
    assert {name for name, _ in styles(dark=True)} == {name for name, _ in styles(dark=False)}


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("dark", [False, True])
def test_text_and_bars_have_the_contrast_that_wcag_asks_for(dark: bool) -> None:
    colours = dict(styles(dark))
    page = luminance(colours.pop("page"))
    decoration = {"grid", "lens"}
    for name in colours.keys() - decoration:
        low, high = sorted((page, luminance(colours[name])))
        wanted = 4.5 if name in ("text", "dim", "failed", "success") else 3.0
        assert (high + 0.05) / (low + 0.05) >= wanted, name


def test_every_class_that_is_drawn_has_a_colour() -> None:
    colours = {name for name, _ in styles(dark=False)}
    drawn_classes = {e.attrib["class"] for e in tree(SESSION).iter() if "class" in e.attrib}
    assert {c for c in drawn_classes if not set(c.split()) & colours} == set()


def test_who_cannot_see_it_is_told_the_summary() -> None:
    root = tree(SESSION)
    title, desc = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert root.attrib["role"] == "img"
    assert title is not None
    assert desc is not None
    assert root.attrib["aria-labelledby"].split() == [title.attrib["id"], desc.attrib["id"]]
    assert title.text == f"vmsnap session {SESSION.session}"
    assert "writes stalled for 15.0 ms" in (desc.text or "")
