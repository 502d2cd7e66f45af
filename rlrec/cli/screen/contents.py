"""This module makes the pages of the screen from the answers of commands, as tables and figures in HTML. Answers are
cached. An error becomes a page that people can read."""

from __future__ import annotations

import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import count, groupby
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast
from urllib.parse import parse_qsl

from rlrec import times
from rlrec.cli.commands.experiments import experiment as experiments
from rlrec.cli.commands.experiments import route as routes
from rlrec.cli.commands.judging import effects as effect_views
from rlrec.cli.commands.judging import status as statuses
from rlrec.cli.commands.policies import policy_view
from rlrec.cli.commands.requests import decision as decisions
from rlrec.cli.commands.requests import session as sessions
from rlrec.cli.output.tables import cell, short_times
from rlrec.cli.program import app
from rlrec.cli.program.shared import Store, safe_text
from rlrec.cli.screen.grids import Address, Grid, page_address
from rlrec.cli.text.text import View, escape_unprintable, truncate
from rlrec.errors import InputError, RlrecError, StoreBusy, quantity, suggest
from rlrec.times import format_time

if TYPE_CHECKING:
    from rlrec.report.figures import Figure
    from rlrec.report.html import Table

Arguments = Mapping[str, str]
N_POLICIES = 8  # whose beliefs about an arm are shown
N_SESSIONS = 1_000  # newest sessions that are listed
N_DIGITS = 18  # of the id of a decision or the number of a visit, at most
HEADINGS = {"route": "Routes", "experiment": "Experiments"}  # of tables of the overview, by their first column
# the page to which values of a column link; a header has the same meaning in all tables
LINKED_PAGES = {
    "policy": "policy?name=", "experiment": "experiment?name=", "route": "route?name=", "session": "session?key=",
    "user": "user?key=", "decision": "decision?id=", "decision_id": "decision?id=", "arm": "arm?key=",
}  # fmt: skip
FINDING_COLUMNS = ("severity", "check", "subject", "detail")  # columns of the page on health
TIMELINE_COLUMNS = (  # columns of a visit, with what was shown before what was known
    "step", "decision", "position", "arm", "propensity", "events", "reward", "return", "policy", "at", "context",
    "state",
)  # fmt: skip
MENU = {
    "": "Overview", "policies": "Policies", "experiments": "Experiments", "effects": "Effects", "arms": "Arms",
    "sessions": "Sessions", "health": "Health", "report": "Report", "find": "Find",
}  # fmt: skip


class Panel(NamedTuple):
    """A Panel is a part of a page: the table of a command's answer, before its layout, with figures of the same answer.

    `places` says to which page the values of a column link, by the header of the column."""

    view: View
    heading: str = ""
    figures: Sequence[Figure] = ()
    places: Mapping[str, str] = LINKED_PAGES


class PageContent(NamedTuple):
    """A PageContent holds the content of a page.

    `links` are links to other pages, as pairs of text and address. `alerts` are urgent messages, and `notices` are
    texts that the command printed. `report` has the values that fill in the template of a report, in place of
    panels. `location` is the address to which a search redirects, or empty."""

    title: str
    panels: Sequence[Panel] = ()
    links: Sequence[tuple[str, str]] = ()
    alerts: Sequence[str] = ()
    notices: Sequence[str] = ()
    report: Mapping[str, Any] | None = None
    location: str = ""


def overview(store: Store, args: Arguments) -> PageContent:
    result = app.status.status(store)
    view = statuses.status_view(result)
    alerts = [statuses.finding_line(row) for row in result["warnings"] if row["severity"] != "info"]
    holdouts = [statuses.holdout_sentence(row) for row in result["holdouts"]]
    notes = [note for note in view.notes if note not in (*alerts, *holdouts)]
    lines = [note for note in notes if isinstance(note, str)]
    tables = [note for note in notes if isinstance(note, View)]
    panels = [
        Panel(View((), (), [*holdouts, *view.title])),
        Panel(view._replace(title=(), notes=lines), "Policies"),
        *(Panel(table, HEADINGS[table.headers[0]]) for table in tables),
    ]
    return PageContent("Overview", panels, alerts=[*map(short_times, alerts)])


def list_policies(store: Store, args: Arguments) -> PageContent:
    return PageContent("Policies", [Panel(policy_view.policies_view(app.versions.list_versions(store)))])


def show_policy(store: Store, args: Arguments) -> PageContent:
    result = app.policy_beliefs.show(store, args["name"])
    name, version = result["policy"], result["version"]
    view = policy_view.belief_view(result, all_arms=True, curve=True, for_terminal=False, sorts_arms=True)
    training = app.figures.training(name, version, result["training"], live=version == result["live"])
    charts = [*filter(None, [training, app.figures.beliefs(result)])]
    history = policy_view.versions_view(app.versions.history(store, name))
    places = {"version": f"{page_address(LINKED_PAGES['policy'], name)}%40"}
    return PageContent(
        f"Policy {name}@{version}", [Panel(view, "Belief", charts), Panel(history, "Versions", (), places)]
    )


def list_experiments(store: Store, args: Arguments) -> PageContent:
    split = experiments.experiments_view(app.experiment.list_experiments(store))
    routes_view = View.select(app.route.list_routes(store), routes.ROUTE_COLUMNS)
    return PageContent("Experiments and routes", [Panel(split, "Experiments"), Panel(routes_view, "Routes and ramps")])


def show_experiment(store: Store, args: Arguments) -> PageContent:
    result = app.compare.show(store, args["name"])
    view = experiments.comparison_view(result, experiments.DEFAULT_LEVEL, details=True)
    route = [("route", page_address(LINKED_PAGES["route"], result["route"]))] if "route" in result else []
    policies = [(row["policy"], page_address(LINKED_PAGES["policy"], row["policy"])) for row in result["variants"]]
    chart = app.figures.comparison(result)
    return PageContent(
        f"Experiment {args['name']}", [Panel(view, "Variants", [chart] if chart else [])], [*route, *policies]
    )


def show_route(store: Store, args: Arguments) -> PageContent:
    result = app.route.show(store, args["name"])
    names = [("policy", result["policy"]), ("experiment", result["experiment"]), ("experiment", result.get("holdout"))]
    links = [(f"{noun} {name}", page_address(LINKED_PAGES[noun], name)) for noun, name in names if name]
    return PageContent(f"Route {args['name']}", [Panel(routes.route_view(result))], links)


def effects(store: Store, args: Arguments) -> PageContent:
    log = app.report.newest_filter(store)
    result = app.effects.effects(store, app.effects.Request(log=log))
    view = effect_views.effects_view(result)
    lead = [] if log is None else [f"from the newest {app.report.MAX_JUDGED:,} decisions: `rlrec effects --log {log}`"]
    return PageContent(
        "Effects", [Panel(view._replace(title=[*lead, *view.title]), "By arm", [app.figures.effects(result)])]
    )


def list_arms(store: Store, args: Arguments) -> PageContent:
    arms = [arm | {"added": arm["added_at"]} for arm in app.arm.list_arms(store)]
    return PageContent("Arms", [Panel(View.select(arms, ("arm", "status", "features", "added")))])


def show_arm(store: Store, args: Arguments) -> PageContent:
    key, rows, notes = args["key"], list[dict[str, Any]](), list[str]()
    arm = next((arm for arm in app.arm.list_arms(store) if arm["arm"] == key), None)
    if arm is None:
        raise InputError(f"unknown arm {key!r}", hint="the page of arms lists them")
    policies = app.versions.list_versions(store)
    for policy in policies[:N_POLICIES]:
        try:
            belief = app.policy_beliefs.show(store, policy["policy"], drift=False)
        except InputError:  # a policy without a belief of its own
            continue
        head = {name: policy[name] for name in ("policy", "kind", "reward")} | dict.fromkeys(
            policy_view.BELIEF_COLUMNS[2:]
        )
        rows += [head | row for row in belief["arms"] if row["arm"] == key]
        notes = [policy_view.PRUNED_NOTE] if "pruned" in belief else notes
    title = [f"{'added' if name == 'added_at' else name} {cell(value)}" for name, value in arm.items() if value]
    left_out = [f"of the first {N_POLICIES} of {len(policies)} policies"] if len(policies) > N_POLICIES else []
    view = View.select(rows, ("policy", "kind", "reward", *policy_view.BELIEF_COLUMNS[2:]), title=[*left_out, *notes])
    slots = app.decision.list_shown(store, key)
    number = f"at most {app.decision.MAX_SHOWN} slots," if slots else "none"
    source = f"{number} of the newest {app.decision.N_NEWEST:,} decisions"
    slot_view = View.select(slots, app.decision.SHOWN, title=[source])
    panels = [Panel(view, "What live versions believe about it"), Panel(slot_view, "Newest decisions that showed it")]
    return PageContent(f"Arm {key}", [Panel(View((), (), title)), *panels])


def list_sessions(store: Store, args: Arguments) -> PageContent:
    rows = app.session.list_sessions(store, limit=N_SESSIONS)
    return PageContent("Sessions", [Panel(View.select(rows, sessions.SESSION_COLUMNS))])


def show_user(store: Store, args: Arguments) -> PageContent:
    person = app.user.show(store, args["key"])
    rows = app.session.list_sessions(store, limit=None, user=args["key"])
    keys = [f"also known as {', '.join(person['keys'][1:])}"] if len(person["keys"]) > 1 else []
    return PageContent(
        f"User {person['user']}", [Panel(View.select(rows, sessions.SESSION_COLUMNS, title=keys), "Sessions")]
    )


def show_session(store: Store, args: Arguments) -> PageContent:
    number = _read_number("visit", args["visit"]) if args.get("visit") else None
    visit = app.session.show(store, app.session.Request(key=args["key"], visit=number))
    neighbours = [("the visit before", visit["visit"] - 1), ("the next visit", visit["visit"] + 1)]
    address = page_address(LINKED_PAGES["session"], args["key"])
    links = [(text, f"{address}&visit={number}") for text, number in neighbours if 1 <= number <= visit["visits"]]
    links += [(f"user {visit['user']}", page_address(LINKED_PAGES["user"], visit["user"]))] if visit["user"] else []
    timeline = sessions.timeline_view(visit)
    order = [timeline.headers.index(name) for name in TIMELINE_COLUMNS]
    rows = [[row[column] for column in order] for row in timeline.rows]
    return PageContent(f"Session {args['key']}", [Panel(timeline._replace(headers=TIMELINE_COLUMNS, rows=rows))], links)


def show_decision(store: Store, args: Arguments) -> PageContent:
    number = _read_number("decision", args["id"])
    result = app.decision.show(store, number)
    nouns = ("session", "user", "route", "experiment", "policy")
    keys = ((noun, result.get(noun)) for noun in nouns)
    links = [(f"{noun} {key}", page_address(LINKED_PAGES[noun], key)) for noun, key in keys if key]
    return PageContent(f"Decision {number}", [Panel(decisions.decision_view(result))], links)


def _read_number(noun: str, text: str) -> int:
    """Return the number in a text. Raises InputError if the text has no number that a store could have.

    noun: the word for what the number stands for."""
    if not (text.isascii() and text.isdigit() and len(text) <= N_DIGITS):
        raise InputError(f"unknown {noun} {truncate(text)!r}")
    return int(text)


def health(store: Store, args: Arguments) -> PageContent:
    state, findings = app.status.status(store), app.report.quick_findings(store)
    rows = [*state["warnings"], *map(vars, findings)]
    distinct_rows = [*{tuple(row[name] for name in FINDING_COLUMNS): row for row in rows}.values()]
    title = [f"last doctor: {statuses.doctor_text(state['doctor'])}; `rlrec doctor` audits everything"]
    quick_text = "here: quick checks of the clock, what waits, and the newest decisions"
    result = f"{quick_text}: {quantity(len(distinct_rows), 'finding') if distinct_rows else 'no finding'}"
    further_text = "not here: the report also checks the log as far as its estimates rest on it, and may find more"
    view = View.select(distinct_rows, FINDING_COLUMNS if distinct_rows else (), title=[*title, result, further_text])
    return PageContent("Health", [Panel(view)], [("report", "report")])


def report(store: Store, args: Arguments) -> PageContent:
    from rlrec.report.html import contents

    answer = app.report.report(store, app.report.Request())
    return PageContent("Report", report=contents(answer))


def find(store: Store, args: Arguments) -> PageContent:
    """Return links to all pages about a key, name or number that the user searches for. If there is a single one, the
    result redirects to it."""
    words = args.get("q", "").strip()
    if not words:
        return PageContent("Find")
    names = {
        "policy": [row["policy"] for row in app.versions.list_versions(store)],
        "experiment": [row["experiment"] for row in app.experiment.list_experiments(store)],
        "route": [row["route"] for row in app.route.list_routes(store)],
        "arm": [row["arm"] for row in app.arm.list_arms(store)],
    }
    hits = [noun for noun, keys in names.items() if words in keys]
    hits += ["policy"] if words.rpartition("@")[0] in names["policy"] and "policy" not in hits else []
    for noun, show in (("session", show_session), ("user", show_user), ("decision", show_decision)):
        with suppress(InputError):
            show(store, {"key": words, "id": words})
            hits.append(noun)
    links = [(f"{noun} {words}", page_address(LINKED_PAGES[noun], words)) for noun in hits]
    if len(hits) == 1:
        return PageContent("", location=links[0][1])
    lines = [] if hits else [f"no user, session, arm, decision, policy, experiment or route is called {words!r}"]
    suggestion = suggest(words, [name for keys in names.values() for name in keys])
    return PageContent("Find", [Panel(View((), (), [*lines, *([suggestion] if suggestion and lines else [])]))], links)


PAGES: Mapping[str, Callable[[Store, Arguments], PageContent]] = {
    "": overview, "policies": list_policies, "policy": show_policy, "experiments": list_experiments,
    "experiment": show_experiment, "route": show_route, "effects": effects, "arms": list_arms, "arm": show_arm,
    "sessions": list_sessions, "session": show_session, "user": show_user, "decision": show_decision,
    "health": health, "report": report, "find": find,
}  # fmt: skip
SLOW_PAGES = {"policy", "experiment", "effects", "arm", "health", "report"}  # pages that read much of the log
IDENTIFYING_ARGUMENTS = ("name", "key", "id", "visit", "q")  # arguments that identify what a page is about


Value = TypeVar("Value")
N_LINES = 50  # above or below a table
REFRESH = {"": "off", "10": "10 s", "60": "60 s"}  # seconds between refreshes of a page, and their labels
RETRY_S = 5  # between refreshes of a page that the store could not provide
CACHE_FACTOR = (
    40  # an answer is kept for this many times the time it took, so that pages take a fortieth of a processor
)
MIN_FRESH_S = 5.0  # at least
CACHE_BYTES = 16_000_000  # of the caches of a process
OBJECT_BYTES = 4  # of memory per character of a content's repr, about


class StoreUnready(RlrecError):
    """A StoreUnready error says that the store is missing, out of date or unreachable, so that no page can be made."""


class BoundedCache(Generic[Value]):
    """A BoundedCache keeps the newest values, as many as fit into CACHE_BYTES, but at least one."""

    def __init__(self) -> None:
        self._entries: OrderedDict[tuple[str, ...], tuple[Value, int]] = OrderedDict()
        self.n_bytes = 0

    def get(self, key: tuple[str, ...]) -> Value | None:
        return self._entries[key][0] if key in self._entries else None

    def put(self, key: tuple[str, ...], value: Value, n_bytes: int) -> None:
        """Keep a value, and drop the oldest values if the cache is now too large.

        n_bytes: the size of the value."""
        n_bytes += sum(map(len, key))
        self.n_bytes += n_bytes - self._entries.pop(key, (None, 0))[1]
        self._entries[key] = value, n_bytes
        while self.n_bytes > CACHE_BYTES and len(self._entries) > 1:
            self.n_bytes -= self._entries.popitem(last=False)[1][1]


class WebPage(NamedTuple):
    """A WebPage is a page as it is sent to a browser.

    `location` is the address to which the page redirects, if it does. `fresh_s` is for how many seconds the same
    page is sent again. `refresh` is after how many seconds the browser asks again, or "" if it never does."""

    status: int
    body: bytes
    location: str = ""
    fresh_s: float = 0.0
    refresh: str = ""


class StoreOptions(NamedTuple):
    """A StoreOptions object names the store of the command, and says how to open it.

    `db` is the URL of the store, and `address` is the URL that pages show. `now` is the clock, and `zone` the time
    zone of pages. `waits` are the limits on waiting for locks, statements and connections."""

    db: str
    address: str
    now: int | None = None
    zone: Any = None
    waits: tuple[int | None, ...] = ()


class _CachedContent(NamedTuple):
    """A _CachedContent holds the content of a page in the cache.

    `at` is the time when the store was read, and `took_s` the seconds that this took. `until` is the time when the
    content expires, by the clock of the process."""

    content: PageContent
    at: str
    took_s: float
    until: float

    @property
    def fresh_s(self) -> float:
        return max(0.0, self.until - time.monotonic())


def parse_arguments(query: str) -> dict[str, str]:
    """Return the arguments of an address, by name. A refresh interval is left out if pages do not offer it.

    query: the part of the address after `?`."""
    pairs = dict(parse_qsl(query))
    if pairs.get("refresh") not in REFRESH:
        pairs.pop("refresh", None)
    return pairs


class PageMaker:
    """A PageMaker makes pages. It caches the answers of commands, so that a table can be sorted at once even if it took
    long to compute."""

    def __init__(self, options: StoreOptions) -> None:
        self.options = options
        self._answers = BoundedCache[_CachedContent]()

    def make(self, path: str, query: str) -> WebPage:
        """Return the page of an address. An error becomes a page, too.

        path: the name of the page. query: the arguments of the address."""
        address = Address(path, parse_arguments(query))
        args = {name: address.args[name] for name in IDENTIFYING_ARGUMENTS if name in address.args}
        began_at = time.monotonic()
        try:
            answer = self._answer(path, args)
            if answer.content.location:
                return WebPage(303, b"", address.follow(answer.content.location))
            body = self._render(answer.content, address, answer)
        except Exception as error:
            return self._problem(error, address, 404 if args else 200, time.monotonic() - began_at)
        # a refresh would clear the text being typed
        refresh = "" if path == "find" else address.args.get("refresh", "")
        return WebPage(200, body, "", answer.fresh_s, refresh)

    def _answer(self, path: str, args: Arguments) -> _CachedContent:
        """Return the content of a page, from the cache or from the store.

        args: the arguments of the address that say what the page is about."""
        key = (path, *(word for pair in sorted(args.items()) for word in pair))
        if (entry := self._answers.get(key)) is not None and time.monotonic() < entry.until:
            return entry
        from rlrec.app.opening import open_store

        began_at, notices = time.monotonic(), list[str]()
        times.zone, options = self.options.zone, self.options
        with open_store(options.db, now=options.now, notice=notices.append, waits=options.waits) as store:
            try:
                with store.read() as unit:
                    at = format_time(unit.now)
            except RlrecError as error:
                raise StoreUnready(error.message, hint=error.hint) from error
            content = PAGES[path](store, defaultdict(str, args))
        took_s = time.monotonic() - began_at
        until = began_at + took_s + max(MIN_FRESH_S, CACHE_FACTOR * took_s)
        answer = _CachedContent(content._replace(notices=notices), at, took_s, until)
        self._answers.put(key, answer, OBJECT_BYTES * len(repr(content)))
        return answer

    def _problem(self, error: Exception, address: Address, status: int, took_s: float) -> WebPage:
        """Return a page about an error.

        status: the HTTP status if the request is at fault; took_s: the seconds until the error."""
        if not isinstance(error, RlrecError):
            error = RlrecError(f"unexpected {type(error).__name__}: {error}", hint="`rlrec doctor` looks closer")
            status = 500
        lines = [safe_text(text, self.options.db) for text in (error.message, error.hint) if text]
        refresh = address.args.get("refresh", "")
        if isinstance(error, StoreUnready | StoreBusy):
            status, refresh = 503, str(RETRY_S)
            lines.append(f"This page comes again by itself every {RETRY_S} seconds.")
        content = PageContent("The store cannot be shown" if status == 503 else "Nothing to show", alerts=lines)
        return WebPage(
            status, self._render(content, address), "", 0.0 if status == 503 else CACHE_FACTOR * took_s, refresh
        )

    def _render(self, content: PageContent, address: Address, answer: _CachedContent | None = None) -> bytes:
        """Return the HTML of a page with this content.

        answer: the cached content, which has the time when the store was read; None for a page about an error."""
        parts = [[*_panel_parts(panel, f"t{number}", address)] for number, panel in enumerate(content.panels)]
        return app.html.render(
            "screen.html", title=content.title, content=content, parts=parts, address=address, made=answer,
            menu=MENU, refreshes=REFRESH, store=self.options.address, zone=self.options.zone or "UTC",
            at=None if answer is None else short_times(answer.at), **(content.report or {}),
        ).encode()  # fmt: skip


def _panel_parts(panel: Panel, key: str, address: Address) -> Iterator[list[str] | Table]:
    """Yield the parts of a panel from top to bottom. A part is a list of lines, or a table.

    key: the anchor of the panel; the anchors of its tables begin with it."""
    view = panel.view
    grid, numbers = [view._replace(title=(), notes=())] if view.headers else [], count()
    for is_table, items in groupby([*view.title, *grid, *view.notes], key=lambda item: isinstance(item, View)):
        if is_table:
            for item in items:
                yield Grid(cast(View, item), f"{key}-{next(numbers)}", address, panel.places).table()
        else:
            lines = [escape_unprintable(short_times(cast(str, line))) for line in items if line]
            left_out = [f"and {len(lines) - N_LINES:,} more lines"] if len(lines) > N_LINES else []
            yield [*lines[:N_LINES], *left_out]
