"""The screen: pages that say what the commands say, whatever names there are, and change nothing."""

from __future__ import annotations

import asyncio
import html
import json
import re
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from email.message import Message
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from rlrec.cli.doors import page_server
from rlrec.cli.doors.page_server import MAX_AGE_S, PageServer, _CachedPage
from rlrec.cli.screen.contents import CACHE_BYTES, MIN_FRESH_S, PAGES, BoundedCache, PageMaker, StoreOptions, WebPage
from tests.cli.doors.test_serve import LOADED, served
from tests.conftest import ON_BOTH, Run, filled, runner, store_after

EVIL, HTML_USER = "<script>alert('a & b')</script>\u202e", '"><img src=x onerror=alert(1)>'
TOKEN = "0123456789abcdef0123"
LATER = "2032-01-01T00:00:00Z"


def stocked(db: str) -> None:
    run = runner(db)
    arms = [{"arm": arm, "features": {}} for arm in ["a", "b", "c", EVIL]]
    steps: list[list[str]] = [
        ["arm", "import", "-"],
        ["policy", "create", "home", "--kind", "thompson", "--param", "floor=0.3"],
        ["policy", "create", "other", "--kind", "uniform"],
        ["route", "create", "front", "--to", "home", "--holdout", "20%"],
        ["route", "ramp", "front", "--to", "other", "--steps", "50%,100%", "--hold", "1h"],
        ["experiment", "create", "ab", "--variant", "a=home", "--variant", "b=other"],
    ]
    for words in steps:
        run(*words, stdin=arms).done()
    lines = [
        {**target, "session": f"s{n}", "user": f"u{n}" if n else HTML_USER, "k": 2}
        for n in range(30) for target in ({"experiment": "ab"}, {"policy": "front"})
    ]  # fmt: skip
    answers = run("recommend", "--input", "-", stdin=lines).lines
    clicks = [{"decision_id": each["decision_id"], "position": 1, "events": {"click": 1}} for each in answers[::3]]
    assert run("feedback", "--input", "-", stdin=clicks).exit_code == 0


shop = store_after(stocked)


def page_of(db: str, path: str, **args: str) -> WebPage:
    query = "&".join(f"{name}={quote(value)}" for name, value in args.items())
    return PageMaker(StoreOptions(db, db)).make(path, query)


def text_of(page: WebPage) -> str:
    """The words of a page, as they are read."""
    body = re.sub(r"<(style|svg).*?</\1>", "", page.body.decode(), flags=re.DOTALL)
    return html.unescape(re.sub("<[^>]*>", " ", body))


PAGE_OF_COMMAND = {
    ("status",): ("", {}),
    ("policy", "list"): ("policies", {}),
    ("policy", "show", "home@ab/a"): ("policy", {"name": "home@ab/a"}),
    ("policy", "versions", "home@ab/a"): ("policy", {"name": "home@ab/a"}),
    ("experiment", "list"): ("experiments", {}),
    ("experiment", "show", "ab", "--details"): ("experiment", {"name": "ab"}),
    ("experiment", "show", "front-ramp-1", "--details"): ("experiment", {"name": "front-ramp-1"}),
    ("route", "list"): ("experiments", {}),
    ("route", "show", "front"): ("route", {"name": "front"}),
    ("arm", "list"): ("arms", {}),
    ("session", "list"): ("sessions", {}),
    ("session", "list", "--user", HTML_USER): ("user", {"key": HTML_USER}),
    ("session", "show", "s0"): ("session", {"key": "s0"}),
    ("decision", "show", "1"): ("decision", {"id": "1"}),
}  # fmt: skip


@ON_BOTH
def test_a_page_says_every_word_and_figure_of_its_command(shop: Run, db: str) -> None:
    """All but the clock of `status`, which goes on."""
    for words, (path, args) in PAGE_OF_COMMAND.items():
        page, lines = page_of(db, path, **args), shop(*words).stdout.splitlines()
        lines = [line for line in lines if not line.startswith("20") and set(line) - set("- ")]
        command = re.sub(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)\.\d{6}Z", r"\1 \2", "\n".join(lines))
        assert page.status == 200, words
        assert len(command.split()) > 5, words
        # a blank where a table has a line for each slot
        assert {*command.split()} - {*text_of(page).split()} <= {"-"}, words


@pytest.mark.slow
def test_effects_and_the_report_are_those_of_the_commands(imported_effects: tuple[str, Run]) -> None:
    db, run = imported_effects
    shown = run("effects", "--json").json["groups"][0]["arms"]
    page = text_of(page_of(db, "effects"))
    assert len(shown) == 12
    for arm in shown:
        figures = [f"{arm[name]:.4g}" for name in ("long_run", "lower", "upper", "shrunk")]
        assert [figure for figure in (arm["arm"], *figures) if figure not in page.split()] == []
    report = PageMaker(StoreOptions(db, db)).make("report", "").body.decode()
    written = run("report", "-").stdout
    figures = re.findall("<svg.*?</svg>", written, re.DOTALL)
    assert len(figures) >= 2
    assert [figure for figure in figures if figure not in report] == []


def simulated(db: str) -> None:
    run = runner(db)
    assert run("policy", "create", "home", "--kind", "thompson", "--param", "floor=0.3").exit_code == 0
    done = run(
        "simulate", "shop", "--policy", "home", "--sessions", "120", "-k", "2", "--group", "100", "--seed", "1",
        "--env", "arms=12", "--env", "categories=4", "--env", "bait=5",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr


@pytest.fixture
def imported_effects(sqlite_db: str) -> tuple[str, Run]:
    return sqlite_db, filled(sqlite_db, simulated)


@pytest.mark.slow
def test_names_are_no_markup_on_any_page(shop: Run, sqlite_db: str) -> None:
    decision = shop("session", "show", "s0", "--json").json["decisions"][0]["decision_id"]
    arguments = {
        "policy": {"name": "home@ab/a"}, "experiment": {"name": "ab"}, "route": {"name": "front"},
        "arm": {"key": EVIL}, "session": {"key": "s0"}, "user": {"key": HTML_USER}, "decision": {"id": str(decision)},
        "find": {"q": HTML_USER + "x"},
    }  # fmt: skip
    maker, n_escaped = PageMaker(StoreOptions(sqlite_db, sqlite_db)), 0
    for path in PAGES.keys() - {"report", "effects"}:
        for sort in ("", "arm", f"{EVIL}:{HTML_USER}"):
            args = {
                **arguments.get(path, {}),
                **({"sort-t0-0": sort, "only-t0-0": sort, "from-t0-0": "x"} if sort else {}),
            }
            page = maker.make(path, "&".join(f"{name}={quote(value)}" for name, value in args.items()))
            body = page.body.decode()
            assert page.status == 200, (path, text_of(page))
            assert re.search(r"<script|<img|javascript:|\son\w+=\"|\u202e", body) is None, path
            n_escaped += "&lt;script&gt;" in body or "&lt;img" in body
    assert n_escaped > 6


def test_tables_are_sorted_filtered_and_cut_by_links(sqlite_db: str, run_sqlite: Run) -> None:
    arms = [{"arm": f"a{n:03}", "features": {"n": n % 7}} for n in range(250)]
    assert run_sqlite("arm", "import", "-", stdin=arms).exit_code == 0
    assert run_sqlite("arm", "retire", "a007", "a008").exit_code == 0
    maker = PageMaker(StoreOptions(sqlite_db, sqlite_db))

    def rows(query: str) -> tuple[list[str], str]:
        body = maker.make("arms", query).body.decode()
        return re.findall(r'<tr><td><a href="[^"]*">(a\d+)<', body), body

    first, body = rows("refresh=10")
    assert (first, "rows 1 to 100 of 250" in body) == ([f"a{n:03}" for n in range(100)], True)
    links = [html.unescape(link) for link in re.findall('href="(arms[^"]*)"', body)]
    assert [link for link in links if "#" in link] == []  # each refresh would lead back there
    assert "#t0-0" in rows("")[1]
    assert [link for link in links if "refresh=10" not in link] == ["arms?", "arms?refresh=60"]

    def follow(ending: str) -> str:
        return next(link for link in links if ending in link).partition("?")[2].partition("#")[0]

    assert rows(follow("from-t0-0=100"))[0][0] == "a100"
    assert rows(follow("only-t0-0=status%3Aretired"))[0] == ["a007", "a008"]
    _, ascending = rows(follow("sort-t0-0=arm"))
    assert 'aria-sort="ascending"' in ascending
    assert "sort-t0-0=-arm" in ascending
    assert rows("sort-t0-0=-arm")[0][0] == "a249"
    assert rows("sort-t0-0=-arm&from-t0-0=200")[0][-1] == "a000"


def test_a_search_leads_to_the_one_page_or_lists_several(shop: Run, sqlite_db: str) -> None:
    for words, location in (
        ("u3", "user?key=u3"), ("s3", "session?key=s3"), ("17", "decision?id=17"), ("front", "route?name=front"),
        ("home@1", "policy?name=home%401"), (EVIL, f"arm?key={quote(EVIL, safe='')}"),
    ):  # fmt: skip
        assert page_of(sqlite_db, "find", q=words).location == location
    assert shop("arm", "add", "ab").exit_code == 0
    several = page_of(sqlite_db, "find", q="ab")
    assert ("experiment ab" in text_of(several), "arm ab" in text_of(several)) == (True, True)
    assert "did you mean home?" in text_of(page_of(sqlite_db, "find", q="hom"))
    unknown = page_of(sqlite_db, "session", key="nobody")
    assert (unknown.status, "unknown session 'nobody'" in text_of(unknown)) == (404, True)


def test_from_a_user_to_the_reason_for_an_arm_by_links_alone(shop: Run, sqlite_db: str) -> None:
    """As somebody does who is asked why a user saw an arm."""
    maker, page = PageMaker(StoreOptions(sqlite_db, sqlite_db)), page_of(sqlite_db, "find", q="u7")
    for target in (r"user\?key=u7", r"session\?key=s7", r"decision\?id=\d+"):
        links = [*re.findall('href="([^"]*)"', page.body.decode()), page.location]
        path, _, query = html.unescape(next(link for link in links if re.fullmatch(target, link))).partition("?")
        page = maker.make(path, query)
        assert page.status == 200
    words = text_of(page)
    assert re.search(r"position 1: \S+, propensity 0\.\d+ \(derived 0\.\d+\)", words)
    assert "experiment ab" in words
    assert re.search(r"policy (home|other)@ab/[ab]", words)


@pytest.mark.parametrize("state", ["absent", "older", "damaged"])
def test_a_store_that_cannot_be_shown_is_one_page_that_comes_again(sqlite_db: str, tmp_path: Path, state: str) -> None:
    if state == "older":
        with closing(sqlite3.connect(sqlite_db)) as connection:
            connection.execute("UPDATE rlrec_version SET version_num = '0010'")
            connection.commit()
    db = {"absent": str(tmp_path / "none.db"), "older": sqlite_db, "damaged": str(tmp_path / "damaged.db")}[state]
    if state == "damaged":
        Path(db).write_bytes(b"no database" * 1000)
    for path in ("", "policy", "find"):
        page = page_of(db, path, name="home", q="x")
        assert (page.status, page.refresh) == (503, "5")
        assert "The store cannot be shown" in text_of(page)
        assert "Traceback" not in text_of(page)
    assert not (tmp_path / "none.db").exists()


def test_a_locked_store_is_shown_and_one_that_nobody_may_read_says_so(shop: Run, sqlite_db: str) -> None:
    with closing(sqlite3.connect(sqlite_db, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        assert page_of(sqlite_db, "").status == 200
        connection.execute("ROLLBACK")
    options = StoreOptions(sqlite_db, sqlite_db, None, None, (100_000, None, 0))
    with closing(sqlite3.connect(sqlite_db, isolation_level=None)) as connection:
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")  # before its first look: nobody else may read
        connection.execute("BEGIN EXCLUSIVE")
        page = PageMaker(options).make("", "")
        connection.execute("ROLLBACK")
    assert (page.status, page.refresh) == (503, "5")
    assert "is locked by another process" in text_of(page)
    assert PageMaker(options).make("", "").status == 200


@pytest.mark.slow
def test_no_page_writes_to_the_store(shop: Run, sqlite_db: str) -> None:
    with closing(sqlite3.connect(sqlite_db)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = Path(sqlite_db).read_bytes()
    for path, args in PAGE_OF_COMMAND.values():
        assert page_of(sqlite_db, path, **args).status == 200
    for path in ("health", "report"):
        assert page_of(sqlite_db, path).status == 200
    wal = Path(f"{sqlite_db}-wal")
    assert Path(sqlite_db).read_bytes() == before
    assert not wal.exists() or wal.stat().st_size == 0


def test_an_answer_is_kept_for_a_while_and_says_when_it_was_worked_out(shop: Run, sqlite_db: str) -> None:
    maker = PageMaker(StoreOptions(sqlite_db, sqlite_db))
    first = maker.make("arms", "")
    assert shop("arm", "add", "new").exit_code == 0
    assert "new" not in text_of(maker.make("arms", "sort-t0-0=arm")).split()
    assert "new" in text_of(page_of(sqlite_db, "arms")).split()
    assert 4 < first.fresh_s <= 5
    assert re.search(r"As of 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d; worked out in", text_of(first))


def test_no_page_that_comes_again_takes_away_a_search_that_is_typed(shop: Run, sqlite_db: str) -> None:
    maker = PageMaker(StoreOptions(sqlite_db, sqlite_db))
    for path in PAGES:
        page = maker.make(path, "refresh=10&name=home&key=a&id=1")
        assert (page.refresh == "10") == (b"<input" not in page.body) == (path != "find"), path
        assert b'href="find?refresh=10"' in page.body
    assert b'name="refresh" value="10"' in maker.make("find", "refresh=10").body


def test_an_arm_has_the_newest_decisions_that_showed_it(shop: Run, sqlite_db: str) -> None:
    with closing(sqlite3.connect(sqlite_db)) as connection:
        query = "SELECT decision_id FROM slot JOIN arm ON arm.id = arm_id WHERE key = 'b' ORDER BY decision_id DESC"
        ids = [row[0] for row in connection.execute(query)]
    page = page_of(sqlite_db, "arm", key="b").body.decode()
    assert len(ids) > 20
    assert re.findall(r'href="decision\?id=(\d+)"', page) == [*map(str, ids[:20])]
    assert shop("arm", "add", "unseen").exit_code == 0
    assert "none of the newest 50,000 decisions" in text_of(page_of(sqlite_db, "arm", key="unseen"))


def test_beliefs_about_an_arm_name_the_reward_that_each_policy_learns(shop: Run, sqlite_db: str) -> None:
    shop("reward", "define", "late", "click=1", "--window", "0s").done()
    shop("policy", "create", "third", "--kind", "ucb", "--reward", "late").done()
    words = " ".join(text_of(page_of(sqlite_db, "arm", key="a")).split())
    assert [row for row in ("home thompson default", "third ucb late") if row not in words] == []


def test_figures_of_more_than_ten_minutes_ago_are_not_shown(sqlite_db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_server, "PATIENCE_S", 0.05)
    server, now = PageServer(StoreOptions(sqlite_db, sqlite_db)), time.monotonic()
    page = WebPage(200, b'<main id="content">as it was</main>')
    for path, age_s in (("arms", 590), ("health", 610)):
        server._cache.put((path, ""), _CachedPage(page, now - age_s, now - age_s + MAX_AGE_S), len(page.body))

    async def shown(path: str) -> bytes:
        server._tasks[path, ""] = asyncio.get_running_loop().create_future()  # it is being made, for long
        return (await server._page(path, "")).body

    assert [text in asyncio.run(shown("arms")) for text in (b"Older figures", b"as it was")] == [True, True]
    assert [text in asyncio.run(shown("health")) for text in (b"being worked out", b"as it was")] == [True, False]


def test_a_refresh_that_is_no_choice_is_dropped(shop: Run, sqlite_db: str) -> None:
    maker, long = PageMaker(StoreOptions(sqlite_db, sqlite_db)), "1" * 30_000
    for refresh in (long, "10%0D%0AX-Evil:1", "11", "1%26q=x"):
        assert maker.make("find", f"q=u3&refresh={refresh}").location == "user?key=u3"
        page = maker.make("arms", f"refresh={refresh}")
        assert (page.refresh, b"refresh=1111" in page.body, b"Evil" in page.body) == ("", False, False)
    assert maker.make("find", "q=u3&refresh=10").location == "user?key=u3&refresh=10"


def test_pages_about_errors_keep_the_refresh(shop: Run, sqlite_db: str) -> None:
    """Doors ask for no page that is not there: to be asked for one is an error that nobody expects."""
    maker = PageMaker(StoreOptions(sqlite_db, sqlite_db))
    missing, unexpected = maker.make("session", "key=nobody&refresh=60"), maker.make("nowhere", "refresh=60")
    assert (missing.status, missing.refresh) == (404, "60")
    assert (unexpected.status, unexpected.refresh) == (500, "60")
    assert "unexpected KeyError: 'nowhere'" in text_of(unexpected)
    assert missing.fresh_s > 0  # what took long to refuse is not asked again with each look


@pytest.mark.parametrize("number", ["9" * 4_301, "abc", "\u0661", "-1", "1" * 19, "\u00b2"])
def test_what_is_no_number_is_unknown(shop: Run, sqlite_db: str, number: str) -> None:
    decision, visit = page_of(sqlite_db, "decision", id=number), page_of(sqlite_db, "session", key="s0", visit=number)
    assert (decision.status, f"unknown decision '{number[:9]}" in text_of(decision)) == (404, True)
    assert (visit.status, f"unknown visit '{number[:9]}" in text_of(visit)) == (404, True)
    assert "no user, session, arm, decision" in text_of(page_of(sqlite_db, "find", q=number))


def test_health_says_what_it_looked_at_and_has_no_empty_table(sqlite_db: str) -> None:
    run = runner(sqlite_db)
    assert run("policy", "create", "home", "--kind", "uniform").exit_code == 0
    page = page_of(sqlite_db, "health")
    assert ("the newest decisions: no finding" in text_of(page), b"<table" in page.body) == (True, False)
    assert ("nothing is wrong" in text_of(page), b'href="report"' in page.body) == (False, True)


def test_tables_of_the_overview_have_headings(shop: Run, sqlite_db: str) -> None:
    body = page_of(sqlite_db, "").body.decode()
    assert re.findall("<h2>(.*?)</h2>", body) == ["Policies", "Routes", "Experiments"]
    assert body.count("<table") == 3


def test_a_cache_holds_no_more_than_its_bytes_and_always_the_newest() -> None:
    cache = BoundedCache[int]()
    for number in range(10):
        cache.put(("page", str(number)), number, CACHE_BYTES // 4)
        cache.put(("page", str(number)), number, CACHE_BYTES // 4)  # anew
    assert [number for number in range(10) if cache.get(("page", str(number))) is not None] == [7, 8, 9]
    assert cache.n_bytes <= CACHE_BYTES
    cache.put(("large",), 1, 2 * CACHE_BYTES)
    assert (cache.get(("large",)), cache.get(("page", "9"))) == (1, None)
    cache.put(("small",), 2, 10)
    assert (cache.get(("large",)), cache.get(("small",)), cache.n_bytes) == (None, 2, 15)


# -- over HTTP --


@contextmanager
def screened(db: str, program: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of a screen, and its process."""
    command = [program, "--db", db, "screen", "--listen", "127.0.0.1:0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        try:
            yield json.loads(child.stdout.readline())["url"], child
        finally:
            child.kill()


Fetched = tuple[int, Message, str]  # the status of an answer, its headers and its text


def fetch(url: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> Fetched:
    request = urllib.request.Request(url, headers=dict(headers or {}), method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read().decode()


def awaited(url: str) -> Fetched:
    """A page once it is made."""
    deadline = time.monotonic() + 90
    while "are being worked out" in (answer := fetch(url))[2]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return answer


@pytest.mark.slow
def test_the_screen_is_for_browsers_of_this_machine_and_embeds_nowhere(
    shop: Run, sqlite_db: str, forked_rlrec: Path
) -> None:
    with screened(sqlite_db, forked_rlrec) as (url, child):
        status, headers, body = awaited(url)
        assert (status, "<h1>Overview</h1>" in body) == (200, True)
        assert headers["x-frame-options"] == "DENY"
        assert headers["cache-control"] == "no-store"
        assert "default-src 'none'; style-src 'sha256-" in html.unescape(body)
        assert "refresh" not in headers
        assert awaited(f"{url}screen/?refresh=10")[1]["refresh"] == "10"
        cross = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
        for path, more, method, code in (
            ("screen/", {"Host": "evil.example"}, "GET", 421),
            ("screen/", {"Origin": "http://evil.example"}, "GET", 403),
            ("screen/", cross, "GET", 403),
            ("screen/", cross | {"Sec-Fetch-Mode": "navigate"}, "GET", 200),
            ("screen/", cross | {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, "GET", 403),
            (f"screen/?refresh={'1' * 4_100}", {}, "GET", 414),
            ("screen/", {}, "POST", 405),
            ("screen/../../etc/passwd", {}, "GET", 404),
            ("screen/none", {}, "GET", 404),
            ("v1/recommend", {}, "GET", 404),
        ):
            assert fetch(f"{url}{path}", more, method)[0] == code, (path, more, method)
        # addresses are relative, so that they hold behind a proxy that serves this one under a path of its own
        with closing(HTTPConnection(urlsplit(url).netloc)) as connection:
            connection.request("GET", "/screen")
            answer = connection.getresponse()
            assert (answer.status, answer.headers["location"]) == (303, "screen/")
        for path, method, code, home in (
            ("screen/none/x", "GET", 404, "../../screen/"), ("screen/", "POST", 405, "../screen/"),
        ):  # fmt: skip
            status, headers, body = fetch(f"{url}{path}", {"Accept": "text/html,*/*"}, method)
            assert (status, headers.get_content_type(), headers["x-frame-options"]) == (code, "text/html", "DENY")
            assert f'href="{home}"' in body
        child.terminate()
        assert child.communicate(timeout=30)[1] == b""
        assert child.returncode == 0


@pytest.mark.slow
def test_a_server_with_a_token_asks_browsers_for_it(shop: Run, sqlite_db: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(f"{TOKEN}\n")
    token.chmod(0o600)
    with served(sqlite_db, "127.0.0.1:0", "--screen", "--token-file", str(token)) as (address, _):
        url = f"http://{address}/screen/"
        status, headers, _ = fetch(url)
        assert (status, headers["www-authenticate"].startswith("Basic ")) == (401, True)
        status, headers, body = fetch(url, {"Accept": "text/html"})
        assert (status, headers["www-authenticate"].startswith("Basic "), "a token is needed" in body) == (
            401,
            True,
            True,
        )
        assert "<h1>" in body
        assert "<h1>" not in fetch(f"http://{address}/none", {"Accept": "text/html"})[2]
        wrong, right = (b64encode(f"me:{word}".encode()).decode() for word in ("no", TOKEN))
        for word, code in (
            (f"Basic {right}", 200),
            (f"Basic {wrong}", 401),
            ("Basic x", 401),
            (f"Bearer {TOKEN}", 200),
        ):
            assert fetch(url, {"Authorization": word})[0] == code
        status, headers, _ = fetch(f"http://{address}/metrics", {"Authorization": f"Basic {right}"})
        assert (status, headers["www-authenticate"]) == (401, "Bearer")


@pytest.mark.slow
def test_requests_do_not_wait_for_pages_whose_process_stands_still(shop: Run, sqlite_db: str) -> None:
    with served(sqlite_db, "127.0.0.1:0", "--screen", program=LOADED) as (address, child):
        url = f"http://{address}/screen/"
        awaited(url)
        awaited(f"{url}arms")
        rendered_at = time.monotonic()
        (page_process,) = subprocess.run(
            ["pgrep", "-P", str(child.pid), "-f", "spawn_main"], capture_output=True, text=True, check=True
        ).stdout.split()
        subprocess.run(["kill", "-STOP", page_process], check=True)
        try:
            status, headers, body = fetch(f"{url}policies?refresh=10")
            assert (status, headers["refresh"], "being worked out" in body) == (200, "2", True)
            body = json.dumps({"policy": "home", "session": "during"})
            request = urllib.request.Request(f"http://{address}/v1/recommend", body.encode())
            began = time.monotonic()
            with urllib.request.urlopen(request, timeout=30) as answer:
                assert json.load(answer)["session"] == "during"
            assert time.monotonic() - began < 10
            time.sleep(max(0.0, rendered_at + MIN_FRESH_S - time.monotonic()))
            status, headers, body = fetch(f"{url}arms")  # as it was
            assert (status, headers["refresh"], "Older figures:" in body, "<h1>Arms" in body) == (200, "2", True, True)
        finally:
            subprocess.run(["kill", "-KILL", page_process], check=True)
        _, headers, body = awaited(f"{url}policies?refresh=10")
        assert ("has ended" in body, headers["refresh"]) == (True, "10")
        assert "Older" not in awaited(f"{url}arms")[2]
        assert awaited(f"{url}arms")[0] == 200  # by another process


@pytest.mark.slow
def test_what_the_screen_needs_is_said_before_it_listens(sqlite_db: str) -> None:
    run = runner(sqlite_db)
    assert "serve --screen" in run("screen", "--listen", "0.0.0.0:0").failed(2)
