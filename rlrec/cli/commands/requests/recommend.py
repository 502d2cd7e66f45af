"""This module holds the command `rlrec recommend`, which draws a slate and logs it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import click

from rlrec.cli.output.output import Show
from rlrec.cli.program import app
from rlrec.cli.program.shared import (
    GroupedCommand,
    Store,
    current_settings,
    input_option,
    refuses_future_clock,
    takes_store,
)
from rlrec.cli.text.text import View, cut_middle
from rlrec.cli.text.values import CANDIDATES, KEY, KEYS, LEAST, MOST, OBJECT, PIN, Integer
from rlrec.errors import InputError, OutcomeUnknown, RlrecError

SLOT_COLUMNS = ["position", "arm", "propensity", "marginal", "score"]
N_CANDIDATES = 20  # in the table
SEED = Integer(0, 2**64 - 1)
RULE_OPTIONS = ("pin", "most", "least")  # page rules with options of their own
TYPED_SOURCES = click.core.ParameterSource.COMMANDLINE, click.core.ParameterSource.ENVIRONMENT


@click.command(cls=GroupedCommand)
@click.option("--policy", metavar="NAME[@V]", help="Policy or route to draw from.")
@click.option("--experiment", metavar="NAME", help="Experiment to draw for, in place of a policy.")
@click.option("--session", type=KEY, help="Session key.")
@click.option("--user", type=KEY, help="User key; a session keeps its first one.")
@click.option(
    "--context", type=OBJECT, default="{}", metavar="JSON|@FILE", help="Context: what describes user and moment."
)
@click.option("-k", "--size", type=Integer(1), default=1, show_default=True, help="Positions to fill.")
@click.option("--arms", type=KEYS, metavar="a,@home", help="Only these arms, and those of group home; or a JSON array.")
@click.option(
    "--candidates", type=CANDIDATES, metavar="JSON|@FILE",
    help='In place of --arms, with what you know of each: [{"arm": "a", "score": 1.7, "features": {"price": 9}}]; '
    '"scores": {"new": 1.7, "old": 0.4} has those of several rankers.',
)  # fmt: skip
@click.option("--block", type=KEYS, metavar="a,@home", help="Without these arms.")
@click.option("--not-after", type=KEYS, metavar="KIND[/7d],...", help="Without arms with this event by the person.")
@click.option(
    "--not-shown", metavar="N[/7d],...",
    help="Without arms that the person was shown N times (in 7 days); @push=N counts group push together.",
)  # fmt: skip
@click.option(
    "--page", type=OBJECT, default="{}", metavar="JSON|@FILE",
    help='Rules of the page: {"pin": {"1": "a"}, "most": {"shelf": 2}, "least": {"b": 0.05, "@home": {"1": 0.2}}}.',
)  # fmt: skip
@click.option("--pin", type=PIN, multiple=True, metavar="POSITION=KEY", help="Show this arm there; repeatable.")
@click.option("--most", type=MOST, multiple=True, metavar="FIELD=N", help="At most N with equal FIELD; repeatable.")
@click.option(
    "--least", type=LEAST, multiple=True, metavar="KEY=SHARE[@N]",
    help="Minimum probability of an arm, or of all of @GROUP, at position N or at every one; repeatable.",
)  # fmt: skip
@click.option("--request-id", type=KEY, help="A retry under the same id answers the stored decision.")
@click.option("--seed", type=SEED, help="Seed of the draw [default: 64 random bits].")
@click.option("--dry-run", is_flag=True, help="Draw, and store nothing.")
@input_option
@takes_store("rlrec recommend --policy home --session s1 --user u1 -k 3 --json")
@refuses_future_clock
def recommend(store: Store, show: Show, source: str | None, seed: int | None, dry_run: bool, **request: Any) -> None:
    """With --input, each line is a request with the keys policy or experiment, session, user, context, k, arms (as of
    --arms or of --candidates), block, not_after, not_shown, page and request_id; it is answered in order, a group of
    lines at a time. A group ends if no further line is waiting; with --seed only at 1,000 lines, at the end of the
    input, or at a line {"op": "flush"}."""
    if source is not None:
        context = click.get_current_context()
        for name in request:
            if context.get_parameter_source(name) in TYPED_SOURCES:
                option = "-k" if name == "size" else f"--{name.replace('_', '-')}"
                raise click.UsageError(f"--input and {option} do not go together: the lines have it")
        answer_stream(store, show, source, line_type(), seed=seed, dry_run=dry_run)
        return
    if request["session"] is None:
        raise click.UsageError("Missing option '--session'.")
    if (candidates := request.pop("candidates")) is not None:
        if request["arms"] is not None:
            raise click.UsageError("--arms and --candidates do not go together: candidates are the arms")
        from rlrec.cli.text.lines import decode_candidates

        request["arms"] = decode_candidates(candidates)
    typed_rules = {rule: pairs for rule in RULE_OPTIONS if (pairs := request.pop(rule))}
    try:
        for rule, pairs in typed_rules.items():
            from rlrec.app.serving.statements import add_typed

            add_typed(request["page"], rule, pairs)
        answer = app.recommend.recommend(store, app.recommend.Request(**request), seed=seed, dry_run=dry_run)
    except InputError as error:
        if error.field == "page" and (rule := error.message.partition(" ")[0]) in typed_rules:
            error.field = rule  # the option that the user typed
        raise
    condition_clause = " given the candidates" if "candidates" in answer else ""
    title = [
        f"decision {answer['decision_id'] or '(dry run)'}: {answer['policy']} version {answer['version']}, "
        f"propensity {answer['propensity']:.6g}{condition_clause}{', answered before' if answer['duplicate'] else ''}"
    ]
    if condition_clause:
        from rlrec.cli.commands.requests.session import candidates_text

        title += candidates_text(answer, limit=N_CANDIDATES)
    flat = [{"decision_id": answer["decision_id"], **slot} for slot in answer["slate"]]
    show(answer, table=View.select(answer["slate"], SLOT_COLUMNS, title=title), flat=flat)


@cache
def line_type() -> Any:
    """Return the msgspec Struct of a line that requests a slate."""
    from rlrec.cli.text import lines

    more_names = ("arms", "block", "not_after", "not_shown", "page", "request_id")
    names = ("session", "policy", "experiment", "user", "context", "size", *more_names)
    arms: Any = list[lines.key_type() | lines.candidate_type()]  # type: ignore[misc]
    types: dict[str, Any] = {"arms": arms, "not_shown": int | str, "page": dict[str, Any] | None}
    return lines.line_type("Request", recommend, names, required_fields=["session"], **types)


def answer_stream(
    store: Store, show: Show, source: str, kind: Any, *, seed: int | None, dry_run: bool = False,
    rehearsal: AbstractContextManager[None] | None = None,
) -> None:  # fmt: skip
    """Read lines and answer them in groups. Once a group is stored, an answer or a refusal is written for each of its
    lines. Raises LinesRefused at the end if any line was refused.

    A group of lines ends when it is full, or at a line {"op": "flush"}. Without a seed a group also ends when no
    more lines are waiting.

    `source` is the path of the input, and `kind` the type of a line. With `dry_run`, slates are drawn but not stored,
    each group independently of the groups before. `rehearsal` is a transaction around all groups, after which the
    answers are written."""
    from rlrec.cli.text.lines import groups, rereadable

    current_settings().source = "<stdin>" if source == "-" else source
    app.opening.ready(store)
    # so that a rehearsal need not wait for the writer of the lines
    lines = source if rehearsal is None else rereadable(source)
    pipe, n_lines, n_refused = app.pipe.Pipe(store, seed=seed, dry_run=dry_run), 0, 0

    def answers() -> Iterator[list[Any]]:
        nonlocal n_lines, n_refused
        for group in groups(lines, eager=seed is None, flush=True):
            try:
                group_answers, n_refused_of_group = answer_group(pipe, group, kind)
            except RlrecError as error:
                if n_lines > n_refused and not dry_run and rehearsal is None:
                    remedy = (error.hint or "").removeprefix("nothing was stored").removeprefix("; ")
                    begin_clause = "" if isinstance(error, OutcomeUnknown) else ": begin there"
                    stored_clause = f"all before line {group[0][0]:,} is stored{begin_clause}"
                    error.hint = f"{stored_clause}; {remedy}" if remedy else stored_clause
                raise
            n_lines, n_refused = n_lines + len(group_answers), n_refused + n_refused_of_group
            yield group_answers

    show.stream(answers(), rehearsal=rehearsal)
    if n_refused:
        from rlrec.cli.program.files import refusal_error

        raise refusal_error(n_refused, n_lines=n_lines)


def answer_group(pipe: app.pipe.Pipe, group: Sequence[tuple[int, bytes]], kind: Any) -> tuple[list[Any], int]:
    """Return the answers and refusals for a group of lines, in the order of the lines, and the number of refusals.

    pipe: what answers decoded lines; group: pairs of line number and line; kind: the type of a line."""
    from rlrec.cli.text.lines import decode_group

    decoded_types, lines = (InputError, line_type()), decode_group(group, kind)
    if not {*map(type, lines)} <= {*decoded_types}:
        from rlrec.cli.commands.requests.feedback import line_of

        lines = [line if isinstance(line, decoded_types) else line_of(line, app.feedback.Line) for line in lines]
    answers: list[Any] = pipe.answer(lines)
    error_indices = [index for index, answer in enumerate(answers) if isinstance(answer, InputError)]
    for index in error_indices:
        answers[index] = refused_answer(answers[index], group[index][0])
    return answers, len(error_indices)


def refused_answer(error: RlrecError, number: int) -> dict[str, Any]:
    """Return the answer to a line that is refused. The traceback of the error is dropped, since it would keep the lines
    of the group in memory for a while.

    number: the number of the line."""
    error.__traceback__ = error.__context__ = None
    message = error.message if error.hint is None else f"{error.message}: {error.hint}"
    return {"line": number, "error": cut_middle(message), "field": getattr(error, "field", None), "code": error.code}
