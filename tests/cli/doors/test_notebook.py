"""Answers in a notebook: figures and tables in which nothing that people named is markup."""

from __future__ import annotations

import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import rlrec
from rlrec.api import Recommender
from rlrec.cli.doors.frames import _html_table
from rlrec.cli.text.text import View
from rlrec.errors import InputError

EVIL = "<script>alert(1)</script>"
NOW, LATER = "2030-01-01T12:00:00Z", "2030-01-03T00:00:00Z"


class Tags(HTMLParser):
    """The tags of a text, and the sources of its images."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))


@pytest.fixture
def shop(sqlite_db: str) -> Iterator[Recommender]:
    with rlrec.open(sqlite_db, now=NOW, notice=lambda _: None) as store:
        for arm in (EVIL, "b & c"):
            store.arm.add(arm)
        store.policy.create("home", kind="thompson", params={"floor": 0.2})
        for number in range(16):
            shown = store.recommend("home", session=f"s{number}", user=f"u{number}", seed=number)
            store.feedback(shown.decision_id, {"click": float(number % 3 == 0)})
    with rlrec.open(sqlite_db, now=LATER, notice=lambda _: None) as store:
        yield store


def answers(store: Recommender) -> dict[str, Any]:
    return {
        "evaluate": store.evaluate("home", "uniform", estimators="snips", log="policy=home"),
        "policy": store.policy("home"),
        "outcomes": store.outcomes(by="day"),
        "all visits": store.outcomes(),
        "arms": store.arm.list(),
        "doctor": store.doctor(),
    }


def test_an_answer_shows_its_figure_and_its_table_and_no_markup_of_people(shop: Recommender) -> None:
    for name, answer in answers(shop).items():
        parsed = Tags(answer._repr_html_())
        assert "script" not in parsed.tags, name
        assert {"table", "pre"} & {*parsed.tags}, name
        assert len(parsed.images) == (name in ("evaluate", "policy", "outcomes")), name
    assert "&lt;script&gt;" in shop.arm.list()._repr_html_()


def test_a_figure_is_a_picture_with_words_and_the_file_of_plot(shop: Recommender, tmp_path: Path) -> None:
    file = tmp_path / "home.svg"
    plot = shop.policy("home").plot(str(file))
    with pytest.raises(InputError, match="is not SVG"):
        shop.policy("home").plot(str(tmp_path / "home.png"))
    assert file.read_text(encoding="utf-8") == plot.svg
    image = Tags(plot._repr_html_()).images[0]
    assert image["alt"] == plot.description
    source = image["src"] or ""
    text = b64decode(source.removeprefix("data:image/svg+xml;base64,")).decode()
    assert text == plot.svg
    assert [element for element in ElementTree.fromstring(text).iter() if element.tag.endswith("script")] == []


def test_an_answer_without_a_figure_says_so(shop: Recommender) -> None:
    with pytest.raises(InputError, match="has no figure"):
        shop.arm.list().plot()
    with pytest.raises(InputError, match="has no figure"):
        shop.policy("home").arms[0].plot()


def test_tables_in_tables_and_quotes_are_text() -> None:
    inner = View(["a"], [["<b>"]])
    parsed = _html_table(View(['"x"'], [[1.5], [None]], title=["<i>", inner], notes=["&"]))
    assert Tags(parsed).tags.count("table") == 2
    assert {"b", "i"}.isdisjoint(Tags(parsed).tags)
    assert "&quot;x&quot;" in parsed


@pytest.mark.slow
def test_nothing_is_drawn_before_it_is_shown(sqlite_db: str) -> None:
    script = """
import sys, rlrec
with rlrec.open(sys.argv[1], notice=lambda _: None) as store:
    store.arm.add("a")
    store.policy.create("home", kind="thompson")
    answer = store.policy("home")
    assert not {"rlrec.report.svg", "rlrec.report.figures", "jinja2"} & sys.modules.keys()
    answer._repr_html_()
    assert "rlrec.report.svg" in sys.modules
"""
    subprocess.run([sys.executable, "-c", script, sqlite_db], check=True)
