"""Figures are well-formed whatever names and numbers they get, and stay inside their frame."""

from __future__ import annotations

import random
import re
import xml.etree.ElementTree as ET
from typing import Any, cast

import pytest

from rlrec.app.experiments.compare import VariantComparison
from rlrec.app.policies.policy_beliefs import PolicyBelief
from rlrec.report import svg
from rlrec.report.figures import beliefs, comparison
from rlrec.report.svg import Bar, Drawing, Interval, PlotPoint, Series

NASTY = "</title><script>alert('1 & 2')</script>\x00\x1b\u202e\ud800\uffff" + "\u5546" * 90


def element(drawing: Drawing, title: str = NASTY) -> ET.Element:
    return ET.fromstring(svg.document(drawing, title=title, description=title))


def drawings() -> list[Drawing]:
    points = [PlotPoint(n, None if n == 3 else n * 0.1, n * 0.1 - 1, n * 0.1 + 1, NASTY) for n in range(6)]
    rows = [
        Interval(NASTY, 0.1, None, 1e9, NASTY),
        Interval("b", None, None, None, css_class="no"),
        Interval("c", 0, -1, 1),
    ]
    return [
        svg.chart([Series(NASTY, points, 3), Series("b", points[:1]), Series("c", points)], x_name=NASTY, y_name=NASTY),
        svg.chart([Series("", [PlotPoint(0, 0.0)])], x_name="", y_name="", level=0.0),
        svg.forest(rows, x_name=NASTY, level=0.1),
        svg.forest([Interval("a", None, None, None)], x_name=""),
        svg.bars([Bar(NASTY, 0.0), Bar("b", 1e-12, 3.0)], x_name=NASTY),
    ]


@pytest.mark.parametrize("number", range(5))
def test_a_figure_of_any_names_and_numbers_is_xml_without_a_script(number: int) -> None:
    tags = {each.tag.rpartition("}")[2] for each in element(drawings()[number]).iter()}
    allowed = {"svg", "style", "title", "desc", "rect", "text", "g", "line", "polyline", "polygon", "circle", "path"}
    assert tags <= allowed


@pytest.mark.parametrize("number", range(5))
def test_every_mark_lies_inside_the_frame(number: int) -> None:
    check_frame(element(drawings()[number], "a"))


def check_frame(root: ET.Element) -> None:
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    across = [each.attrib[name] for each in root.iter() for name in ("x", "x1", "x2", "cx") if name in each.attrib]
    down = [each.attrib[name] for each in root.iter() for name in ("y", "y1", "y2", "cy") if name in each.attrib]
    assert all(0 <= float(value) <= width for value in across)
    assert all(0 <= float(value) <= height for value in down)


@pytest.mark.parametrize("seed", range(40))
def test_any_numbers_make_a_figure_inside_its_frame(seed: int) -> None:
    rng = random.Random(seed)

    def draw() -> float | None:
        return rng.choice([None, 0.0, 1.0, rng.uniform(-1, 1), rng.uniform(-1, 1) * 10 ** rng.uniform(-300, 15)])

    values, zero, level = [(draw(), draw(), draw()) for _ in range(rng.randint(1, 4))], rng.random() < 0.5, draw()
    points = [PlotPoint(n, *each, label=str(n)) for n, each in enumerate(values)]
    rows = [Interval("a", *each) for each in values]
    for drawing in (
        svg.chart([Series("a", points)], x_name="x", y_name="y", level=level),
        svg.forest(rows, x_name="x", zero=zero, level=level),
        svg.bars([Bar("a", value or 0.0, tick) for value, tick, _ in values], x_name="x"),
    ):
        check_frame(element(drawing, "a"))


def test_a_line_is_broken_where_a_value_is_unknown() -> None:
    points = [PlotPoint(n, None if n == 2 else 1.0) for n in range(5)]
    drawn = svg.chart([Series("a", points)], x_name="x", y_name="y").marks
    assert drawn.count("<polyline") == 2


def test_a_description_and_a_title_are_named_by_the_figure() -> None:
    drawn = svg.figure(svg.bars([Bar("a", 1.0)], x_name="x"), key="k", title="Finding", description="One bar.")
    assert 'role="img" aria-labelledby="k-t k-d"' in drawn
    assert '<title id="k-t">Finding</title><desc id="k-d">One bar.</desc>' in drawn


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.25, 0.5, 0.75, 1]), (-3, 11, [0, 5, 10]), (0.0012, 0.0019, [0.0012, 0.0014, 0.0016, 0.0018])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert svg.ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\u2013"),
        (0, "0"),
        (0.24956, "0.25"),
        (12345.6, "12,346"),
        (100.0, "100"),
        (-0.07, "-0.07"),
        (3e-7, "3.00e-07"),
    ],
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert svg.number(value) == text


@pytest.mark.parametrize(
    ("values", "labels"),
    [((0.0, 5e-5), ["0", "2e-5"]), ((-3e-5, 0.0), ["-2e-5"]), ((0.0, 3e5), ["100k"]), ((0.0, 3e9), ["1e9"])],
)
def test_labels_of_an_axis_have_room_beside_it(values: tuple[float, float], labels: list[str]) -> None:
    points = [svg.PlotPoint(float(x), y) for x, y in enumerate(values)]
    marks = svg.chart([svg.Series("s", points)], x_name="x", y_name="y").marks
    shown = re.findall(r'<text class="soft" x="49"[^>]*>([^<]*)', marks)
    assert {*labels} <= {*shown}
    assert max(map(len, shown)) <= 7


def test_an_interval_has_the_digits_that_its_bounds_are_apart() -> None:
    assert svg.interval(2.4567, 2.3312, 2.5901) == "2.46 [2.33, 2.59]"
    assert svg.interval(0.2491, 0.24045, 0.25712) == "0.249 [0.240, 0.257]"
    assert svg.interval(0.5, None, 1.0) == "0.5 [\u2013, 1]"
    assert svg.interval(-0.3355, -0.6572, -0.01375) == "-0.34 [-0.66, -0.01]"


def test_every_mode_has_its_colours_and_none_needs_a_variable() -> None:
    assert "var(" not in svg.STYLE
    assert [svg.STYLE.count(f".s1{{stroke:{palette[4]}") for palette in svg.PALETTES.values()] == [2, 1, 2]


def test_the_axis_of_a_long_term_belief_is_not_cut() -> None:
    arm: dict[str, Any] = {"arm": "a", "status": "active", "probability": 1.0, "pulls": None, "served": 3}
    arm |= {"mean": 0.4, "lower": 0.3, "upper": 0.5}
    answer = {
        "policy": "home",
        "version": 4,
        "kind": "long-term",
        "reward": "durable",
        "arms": [arm],
        "has_prior": False,
    }
    figure = beliefs(cast(PolicyBelief, answer))
    assert figure is not None
    assert "believed effect of a look in the long run (durable)" in [*element(figure.drawing).itertext()]


def test_a_comparison_leaves_out_what_is_the_same_everywhere_so_far() -> None:
    bounds = {"value": 0.1, "relative": 0.2, "lower": 0.05, "upper": 0.15, "p_value": 0.01, "needed": None}
    names: dict[str, Any] = {"group": "b", "against": "a", "reward": None, "answer": "better", "reasons": []}
    earned = names | bounds | {"metric": "reward_per_unit", "reward": "default"}
    constant = names | bounds | {"metric": "visits", "answer": "unknown", "reasons": ["no-variation"]}
    answer = {
        "experiment": "ab", "unit": "user", "unit_differences": [earned, constant], "differences": [], "guards": [],
        "variants": [{"variant": "a"}, {"variant": "b"}], "first_at": None, "last_at": None, "created_at": "2026-01-01",
        "sample_ratio": {"p_value": 0.5}, "metric": [], "outcomes": [],
    }  # fmt: skip
    figure = comparison(cast(VariantComparison, answer))
    assert figure is not None
    assert [row[1] for row in figure.rows] == ["reward per user"]
