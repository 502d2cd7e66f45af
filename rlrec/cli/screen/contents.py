"""The contents of the screen's pages: the answers of commands as tables and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from rlrec.cli.commands.experiments import experiment as experiments
from rlrec.cli.commands.experiments import route as routes
from rlrec.cli.commands.judging import effects as effect_views
from rlrec.cli.commands.judging import status as statuses
from rlrec.cli.commands.policies import policy_view
from rlrec.cli.commands.requests import decision as decisions
from rlrec.cli.commands.requests import session as sessions
from rlrec.cli.output.tables import cell, short_times
from rlrec.cli.program import app
from rlrec.cli.program.shared import Store
from rlrec.cli.screen.grids import link
from rlrec.cli.text.text import View, truncate
from rlrec.errors import InputError, quantity, suggest

if TYPE_CHECKING:
    from rlrec.report.figures import Figure

Arguments = Mapping[str, str]
N_POLICIES = 8  # whose beliefs about an arm are shown
N_SESSIONS = 1_000  # newest sessions that are listed
N_DIGITS = 18  # of the id of a decision or the number of a visit, at most
HEADINGS = {"route": "Routes", "experiment": "Experiments"}  # of tables of the overview, by their first column
# the page to which values of a column link; a header has the same meaning in all tables
PLACES = {
    "policy": "policy?name=", "experiment": "experiment?name=", "route": "route?name=", "session": "session?key=",
    "user": "user?key=", "decision": "decision?id=", "decision_id": "decision?id=", "arm": "arm?key=",
}  # fmt: skip
FINDING = ("severity", "check", "subject", "detail")  # columns of the page on health
TIMELINE = (  # columns of a visit, with what was shown before what was known
    "step", "decision", "position", "arm", "propensity", "events", "reward", "return", "policy", "at", "context",
    "state",
)  # fmt: skip
MENU = {
    "": "Overview", "policies": "Policies", "experiments": "Experiments", "effects": "Effects", "arms": "Arms",
    "sessions": "Sessions", "health": "Health", "report": "Report", "find": "Find",
}  # fmt: skip


class Panel(NamedTuple):
    """A view of a command, with figures of the same answer. places: the pages to which values of its columns link."""

    view: View
    heading: str = ""
    figures: Sequence[Figure] = ()
    places: Mapping[str, str] = PLACES


class Content(NamedTuple):
    """The content of a page. related: links to other pages; alerts: urgent messages; notices: of the command; report:
    values for the template of a report, instead of panels; location: the address to which a search redirects."""

    title: str
    panels: Sequence[Panel] = ()
    related: Sequence[tuple[str, str]] = ()
    alerts: Sequence[str] = ()
    notices: Sequence[str] = ()
    report: Mapping[str, Any] | None = None
    location: str = ""


def overview(store: Store, args: Arguments) -> Content:
    result = app.status.status(store)
    view = statuses.view(result)
    alerts = [statuses.warning(row) for row in result["warnings"] if row["severity"] != "info"]
    holdouts = [statuses.holdout(row) for row in result["holdouts"]]
    notes = [note for note in view.notes if note not in (*alerts, *holdouts)]
    lines = [note for note in notes if isinstance(note, str)]
    tables = [note for note in notes if isinstance(note, View)]
    panels = [
        Panel(View((), (), [*holdouts, *view.title])),
        Panel(view._replace(title=(), notes=lines), "Policies"),
        *(Panel(table, HEADINGS[table.headers[0]]) for table in tables),
    ]
    return Content("Overview", panels, alerts=[*map(short_times, alerts)])


def list_policies(store: Store, args: Arguments) -> Content:
    return Content("Policies", [Panel(policy_view.list_view(app.versions.list_versions(store)))])


def show_policy(store: Store, args: Arguments) -> Content:
    result = app.policy_beliefs.show(store, args["name"])
    name, version = result["policy"], result["version"]
    view = policy_view.belief_view(result, all_arms=True, curve=True, terminal=False, ranked=True)
    training = app.curves.training(name, version, result["training"], live=version == result["live"])
    charts = [*filter(None, [training, app.figures.beliefs(result)])]
    history = policy_view.versions_view(app.versions.history(store, name))
    places = {"version": f"{link(PLACES['policy'], name)}%40"}
    return Content(f"Policy {name}@{version}", [Panel(view, "Belief", charts), Panel(history, "Versions", (), places)])


def list_experiments(store: Store, args: Arguments) -> Content:
    split = experiments.list_view(app.experiment.list_experiments(store))
    routed = View.select(app.route.list_routes(store), routes.COLUMNS)
    return Content("Experiments and routes", [Panel(split, "Experiments"), Panel(routed, "Routes and ramps")])


def show_experiment(store: Store, args: Arguments) -> Content:
    result = app.compare.show(store, args["name"])
    view = experiments.view(result, experiments.LEVEL, details=True)
    route = [("route", link(PLACES["route"], result["route"]))] if "route" in result else []
    policies = [(row["policy"], link(PLACES["policy"], row["policy"])) for row in result["variants"]]
    chart = app.figures.comparison(result)
    return Content(
        f"Experiment {args['name']}", [Panel(view, "Variants", [chart] if chart else [])], [*route, *policies]
    )


def show_route(store: Store, args: Arguments) -> Content:
    result = app.route.show(store, args["name"])
    names = [("policy", result["policy"]), ("experiment", result["experiment"]), ("experiment", result.get("holdout"))]
    related = [(f"{noun} {name}", link(PLACES[noun], name)) for noun, name in names if name]
    return Content(f"Route {args['name']}", [Panel(routes.view(result))], related)


def effects(store: Store, args: Arguments) -> Content:
    log = app.report.newest_filter(store)
    result = app.effects.effects(store, app.effects.Request(log=log))
    view = effect_views.view(result)
    lead = [] if log is None else [f"from the newest {app.report.JUDGED:,} decisions: `rlrec effects --log {log}`"]
    return Content(
        "Effects", [Panel(view._replace(title=[*lead, *view.title]), "By arm", [app.figures.effects(result)])]
    )


def list_arms(store: Store, args: Arguments) -> Content:
    arms = [arm | {"added": arm["added_at"]} for arm in app.arm.list_arms(store)]
    return Content("Arms", [Panel(View.select(arms, ("arm", "status", "features", "added")))])


def show_arm(store: Store, args: Arguments) -> Content:
    key, rows = args["key"], list[dict[str, Any]]()
    arm = next((arm for arm in app.arm.list_arms(store) if arm["arm"] == key), None)
    if arm is None:
        raise InputError(f"unknown arm {key!r}", hint="the page of arms lists them")
    live = app.versions.list_versions(store)
    for policy in live[:N_POLICIES]:
        try:
            beliefs = app.policy_beliefs.show(store, policy["policy"], drift=False)["arms"]
        except InputError:  # a policy without a belief of its own
            continue
        columns = dict.fromkeys(policy_view.BELIEF[2:])
        rows += [{"policy": policy["policy"]} | columns | row for row in beliefs if row["arm"] == key]
    title = [f"{'added' if name == 'added_at' else name} {cell(value)}" for name, value in arm.items() if value]
    left_out = [f"of the first {N_POLICIES} of {len(live)} policies"] if len(live) > N_POLICIES else []
    view = View.select(rows, ("policy", *policy_view.BELIEF[2:]), title=left_out)
    slots = app.decision.list_shown(store, key)
    number = f"at most {app.decision.MAX_SHOWN} slots," if slots else "none"
    source = f"{number} of the newest {app.decision.N_NEWEST:,} decisions"
    shown = View.select(slots, app.decision.SHOWN, title=[source])
    panels = [Panel(view, "What live versions believe about it"), Panel(shown, "Newest decisions that showed it")]
    return Content(f"Arm {key}", [Panel(View((), (), title)), *panels])


def list_sessions(store: Store, args: Arguments) -> Content:
    rows = app.session.list_sessions(store, limit=N_SESSIONS)
    return Content("Sessions", [Panel(View.select(rows, sessions.COLUMNS))])


def show_user(store: Store, args: Arguments) -> Content:
    person = app.user.show(store, args["key"])
    rows = app.session.list_sessions(store, limit=None, user=args["key"])
    keys = [f"also known as {', '.join(person['keys'][1:])}"] if len(person["keys"]) > 1 else []
    return Content(f"User {person['user']}", [Panel(View.select(rows, sessions.COLUMNS, title=keys), "Sessions")])


def show_session(store: Store, args: Arguments) -> Content:
    number = _read_number("visit", args["visit"]) if args.get("visit") else None
    visit = app.session.show(store, app.session.Request(key=args["key"], visit=number))
    neighbours = [("the visit before", visit["visit"] - 1), ("the next visit", visit["visit"] + 1)]
    address = link(PLACES["session"], args["key"])
    related = [(text, f"{address}&visit={number}") for text, number in neighbours if 1 <= number <= visit["visits"]]
    related += [(f"user {visit['user']}", link(PLACES["user"], visit["user"]))] if visit["user"] else []
    timeline = sessions.timeline(visit)
    order = [timeline.headers.index(name) for name in TIMELINE]
    rows = [[row[column] for column in order] for row in timeline.rows]
    return Content(f"Session {args['key']}", [Panel(timeline._replace(headers=TIMELINE, rows=rows))], related)


def show_decision(store: Store, args: Arguments) -> Content:
    number = _read_number("decision", args["id"])
    result = app.decision.show(store, number)
    nouns = ("session", "user", "route", "experiment", "policy")
    related = [(f"{noun} {result[noun]}", link(PLACES[noun], result[noun])) for noun in nouns if result.get(noun)]  # type: ignore[literal-required]
    return Content(f"Decision {number}", [Panel(decisions.view(result))], related)


def _read_number(noun: str, text: str) -> int:
    """The number in a text. Raises InputError if no store could have it."""
    if not (text.isascii() and text.isdigit() and len(text) <= N_DIGITS):
        raise InputError(f"unknown {noun} {truncate(text)!r}")
    return int(text)


def health(store: Store, args: Arguments) -> Content:
    state, findings = app.status.status(store), app.report.quick_findings(store)
    rows = [*state["warnings"], *map(vars, findings)]
    distinct = [*{tuple(row[name] for name in FINDING): row for row in rows}.values()]
    title = [f"last doctor: {statuses.doctor(state['doctor'])}; `rlrec doctor` audits everything"]
    quick = "here: quick checks of the clock, what waits, and the newest decisions"
    result = f"{quick}: {quantity(len(distinct), 'finding') if distinct else 'no finding'}"
    further = "not here: the report also checks the log as far as its estimates rest on it, and may find more"
    view = View.select(distinct, FINDING if distinct else (), title=[*title, result, further])
    return Content("Health", [Panel(view)], [("report", "report")])


def report(store: Store, args: Arguments) -> Content:
    from rlrec.report.page import contents

    answer = app.report.report(store, app.report.Request())
    return Content("Report", report=contents(answer))


def find(store: Store, args: Arguments) -> Content:
    """Links to the pages on everything with this key, name or number; if there is only one, its address."""
    words = args.get("q", "").strip()
    if not words:
        return Content("Find")
    names = {
        "policy": [row["policy"] for row in app.versions.list_versions(store)],
        "experiment": [row["experiment"] for row in app.experiment.list_experiments(store)],
        "route": [row["route"] for row in app.route.list_routes(store)],
        "arm": [row["arm"] for row in app.arm.list_arms(store)],
    }
    hits = [noun for noun, stored in names.items() if words in stored]
    hits += ["policy"] if words.rpartition("@")[0] in names["policy"] and "policy" not in hits else []
    for noun, show in (("session", show_session), ("user", show_user), ("decision", show_decision)):
        with suppress(InputError):
            show(store, {"key": words, "id": words})
            hits.append(noun)
    related = [(f"{noun} {words}", link(PLACES[noun], words)) for noun in hits]
    if len(hits) == 1:
        return Content("", location=related[0][1])
    lines = [] if hits else [f"no user, session, arm, decision, policy, experiment or route is called {words!r}"]
    suggestion = suggest(words, [name for stored in names.values() for name in stored])
    return Content("Find", [Panel(View((), (), [*lines, *([suggestion] if suggestion and lines else [])]))], related)


PAGES: Mapping[str, Callable[[Store, Arguments], Content]] = {
    "": overview, "policies": list_policies, "policy": show_policy, "experiments": list_experiments,
    "experiment": show_experiment, "route": show_route, "effects": effects, "arms": list_arms, "arm": show_arm,
    "sessions": list_sessions, "session": show_session, "user": show_user, "decision": show_decision,
    "health": health, "report": report, "find": find,
}  # fmt: skip
SLOW = {"policy", "experiment", "effects", "arm", "health", "report"}  # pages that read much of the log
NAMED = ("name", "key", "id", "visit", "q")  # arguments that identify what a page is about
