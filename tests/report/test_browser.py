"""The page in a real browser: nothing is wider than the window, cut off or loaded, at every size and in every mode."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest

from rlrec.cli.screen.contents import PageMaker, StoreOptions
from tests.cli.commands.judging.test_report import EVIL
from tests.cli.doors.test_screen import HTML_USER, PAGE_OF_COMMAND, stocked
from tests.conftest import runner

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
NARROW, BROAD = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
LONG = "an-arm-with-a-name-that-nobody-would-give-it-unless-a-machine-did-" * 2
CLOCK, LATER = ("--now", "2026-01-01T00:00:00Z"), ("--now", "2026-06-01T00:00:00Z")
# texts of figures that leave their figure, or lie on each other
CROWDED = """() => [...document.querySelectorAll('svg.fig')].flatMap(figure => {
  const frame = figure.getBoundingClientRect();
  const boxes = [...figure.querySelectorAll('text')].filter(text => text.textContent)
    .map(text => ({text: text.textContent, box: text.getBoundingClientRect()}));
  const outside = boxes.filter(({box}) => box.left < frame.left - 1 || box.right > frame.right + 1
    || box.top < frame.top - 1 || box.bottom > frame.bottom + 1).map(({text}) => 'outside: ' + text);
  const crossing = boxes.flatMap((a, n) => boxes.slice(n + 1).filter(b =>
    Math.min(a.box.right, b.box.right) - Math.max(a.box.left, b.box.left) > 1
    && Math.min(a.box.bottom, b.box.bottom) - Math.max(a.box.top, b.box.top) > 3)
    .map(b => 'crossing: ' + a.text + ' | ' + b.text));
  return [...outside, ...crossing];
})"""
BROADER = """() => [...document.querySelectorAll('body *')].filter(each => !each.closest('.scroll, svg')
  && each.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(each => each.outerHTML)"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"none of {', '.join(PROGRAMS)} is installed: `apt-get install chromium`")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    with api.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Path:
    """A page with every kind of figure, and names that are long, or markup."""
    folder = tmp_path_factory.mktemp("page")
    db = shutil.copy(sqlite_template, folder / "rlrec.db")
    run = runner(str(db))
    lines = [{"arm": arm, "features": {}} for arm in [EVIL, LONG, "\u5546\u54c1" * 40, "a", "b"]]
    steps: list[list[str]] = [
        ["arm", "import", "-"],
        ["policy", "create", "home", "--kind", "thompson", "--param", "floor=0.4"],
        ["policy", "create", "uniform-for-comparison", "--kind", "uniform"],
        ["policy", "create", "visits", "--kind", "gradient", "--param", "floor=0.5"],
        ["experiment", "create", "ab", "--variant", "first=home", "--variant", "second=uniform-for-comparison"],
        [*CLOCK, "simulate", "shop", "--experiment", "ab", "--sessions", "80", "-k", "3", "--group", "40",
         "--seed", "1", "--env", "arms=5", "--env", "categories=2", "--env", "bait=2", "--env", "daily=20"],
    ]  # fmt: skip
    for words in steps:
        run(*words, stdin=lines).done()
    for words in (["position", "fit", "home"], ["train-pg", "visits", "--epochs", "5", "--seed", "1"]):
        assert run(*LATER, *words).exit_code == 0
    path = folder / "page.html"
    assert run(*LATER, "report", path, "--title", EVIL).exit_code == 0
    return path


def look(browser: Browser, path: Path, **options: Any) -> dict[str, Any]:
    """What a page asks for, complains of, and where it does not fit; without JavaScript of its own."""
    context = browser.new_context(java_script_enabled=False, **options)
    page, requests, complaints = context.new_page(), list[str](), list[str]()
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(path.as_uri())
    result = {
        "requests": requests, "complaints": complaints, "broader": page.evaluate(BROADER),
        "crowded": page.evaluate(CROWDED), "figures": page.locator("svg.fig").count(),
        "letter": page.evaluate("() => Math.min(...[...document.querySelectorAll('svg.fig')].map(figure =>"
                                " 12 * figure.getBoundingClientRect().width / 400))"),
        "traffic": page.evaluate("() => (box => box.scrollWidth - box.clientWidth)"
                                 "(document.querySelector('#health .scroll'))"),
        "paper": page.evaluate("() => getComputedStyle(document.querySelector('figure')).backgroundColor"),
    }  # fmt: skip
    context.close()
    return result


@pytest.mark.parametrize(("viewport", "scheme"), [(NARROW, "dark"), (BROAD, "light")], ids=["phone", "desk"])
def test_nothing_is_broader_than_the_window_cut_off_or_loaded(
    browser: Browser, page_file: Path, viewport: dict[str, int], scheme: str
) -> None:
    result = look(browser, page_file, viewport=viewport, color_scheme=scheme)
    assert result["requests"] == [page_file.as_uri()]
    assert result["complaints"] == result["broader"] == result["crowded"] == []
    assert result["figures"] >= 8
    assert result["letter"] >= 10
    assert result["traffic"] <= 0
    assert result["paper"] == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 25, 29)"}[scheme]


def test_on_paper_figures_are_light_and_tables_stay_away(browser: Browser, page_file: Path) -> None:
    context = browser.new_context(viewport=BROAD, color_scheme="dark", java_script_enabled=False)
    page = context.new_page()
    page.goto(page_file.as_uri())
    page.emulate_media(media="print")
    paper = page.evaluate("() => getComputedStyle(document.querySelector('figure')).backgroundColor")
    assert (paper, page.locator("details >> visible=true").count()) == ("rgb(255, 255, 255)", 0)
    assert page.evaluate(CROWDED) == []
    assert page.pdf(format="A4").startswith(b"%PDF")
    context.close()


def test_the_tables_of_the_figures_scroll_inside_of_the_page(browser: Browser, page_file: Path) -> None:
    context = browser.new_context(viewport=NARROW)
    page = context.new_page()
    page.goto(page_file.as_uri())
    page.evaluate("() => document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.evaluate(BROADER) == []
    assert page.evaluate("() => document.documentElement.scrollWidth") == NARROW["width"]
    context.close()


@pytest.fixture(scope="module")
def screen_files(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> list[Path]:
    """Pages of the screen of a store whose names are markup."""
    folder = tmp_path_factory.mktemp("screen")
    db = str(shutil.copy(sqlite_template, folder / "rlrec.db"))
    stocked(db)
    maker, paths = PageMaker(StoreOptions(db, db)), list[Path]()
    user = {"key": HTML_USER}
    shown = {**dict(PAGE_OF_COMMAND.values()), "user": user, "health": {}, "find": {"q": "none"}}
    for path, args in shown.items():
        paths.append(folder / f"{len(paths)}.html")
        paths[-1].write_bytes(maker.make(path, urlencode(args)).body)
    return paths


def test_pages_of_the_screen_fit_and_pass_axe_at_every_size_and_in_every_mode(
    browser: Browser, screen_files: list[Path]
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python").Axe()
    page, complaints = browser.new_page(), list[str]()
    page.on("console", lambda message: complaints.append(message.text))
    for number, path in enumerate(screen_files):
        page.goto(path.as_uri())
        for viewport in (NARROW, BROAD, {"width": 1920, "height": 1080}):
            page.set_viewport_size(viewport)
            assert page.evaluate(BROADER.replace("svg'", "svg, .skip'")) == []
        page.emulate_media(color_scheme="dark" if number % 2 else "light")
        violations = axe.run(page).response["violations"]
        assert [(each["id"], each["nodes"][0]["html"]) for each in violations] == []
    assert complaints == []
    page.close()
