"""rlrec recommend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from rlrec.cli import lines as reading
from rlrec.cli.output import Show, View
from rlrec.cli.shared import input_option, printed, settings, stored
from rlrec.cli.values import KEY, KEYS, OBJECT, Whole, parse_key
from rlrec.errors import InputError, LinesRefused

SLOT = ["position", "arm", "propensity", "marginal", "score"]
SEED = Whole(0, 2**64 - 1)


@click.command()
@click.option("--policy", metavar="NAME[@V]", help="Policy to draw from.")
@click.option("--experiment", metavar="NAME", help="Experiment to draw for, in place of a policy.")
@click.option("--session", type=KEY, help="Session key.")
@click.option("--user", type=KEY, help="User key; the session's first one holds.")
@click.option("--context", type=OBJECT, default="{}", metavar="JSON|@FILE", help="What is known of user and moment.")
@click.option("-k", "size", type=Whole(1), default=1, show_default=True, help="Positions to fill.")
@click.option("--arms", type=KEYS, metavar="a,b,c", help="Restrict the eligible arms; a JSON array works too.")
@click.option("--request-id", type=KEY, help="A retry under the same id answers the stored decision.")
@click.option("--seed", type=SEED, help="Seed of the draw [default: 64 random bits].")
@click.option("--dry-run", is_flag=True, help="Draw, and store nothing.")
@input_option
@printed
@stored
def recommend(store: Any, show: Show, source: str | None, seed: int | None, dry_run: bool, **request: Any) -> None:
    """Draw a slate and log it with its exact propensities.

    With --input, each line is a request with the keys policy or experiment, session, user, context, k, arms and
    request_id; it is answered in order, a group of lines at a time. A group ends where nothing more waits; with --seed
    only at 1,000 lines, at the end of the input, or at a line {"op": "flush"}.

    \b
    Example:
      rlrec recommend --policy home --session s1 --user u1 -k 3 --json
    """
    from rlrec.app import recommend as use_case

    if source is not None:
        _refuse_single(request)
        _stream(store, show, source, seed, dry_run)
        return
    if request["session"] is None:
        raise click.UsageError("Missing option '--session'.")
    answer = use_case.recommend(store, use_case.Request(**request), seed=seed, dry_run=dry_run)
    rows = [[slot[name] for name in SLOT] for slot in answer["slate"]]
    title = [
        f"decision {answer['decision_id'] or '(dry run)'}: {answer['policy']} version {answer['version']}, "
        f"propensity {answer['propensity']:.6g}{', answered before' if answer['duplicate'] else ''}"
    ]
    flat = [{"decision_id": answer["decision_id"]} | {name: slot[name] for name in SLOT} for slot in answer["slate"]]
    show(answer, table=View(headers=SLOT, rows=rows, title=title), flat=flat)


def _refuse_single(request: dict[str, Any]) -> None:
    context = click.get_current_context()
    for name in request:
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            option = "-k" if name == "size" else f"--{name.replace('_', '-')}"
            raise click.UsageError(f"--input and {option} do not go together: the lines hold it")


def _line_type() -> Any:
    import msgspec

    return msgspec.defstruct(
        "Request",
        [
            ("session", str),
            ("policy", str | None, None),
            ("experiment", str | None, None),
            ("user", str | None, None),
            ("context", dict[str, Any], {}),
            ("k", int, 1),
            ("arms", list[str] | None, None),
            ("request_id", str | None, None),
        ],
        forbid_unknown_fields=True,
    )


def _stream(store: Any, show: Show, source: str, seed: int | None, dry_run: bool) -> None:
    """Answer each line; groups close when nothing more waits, but with a seed only when they are full."""
    from rlrec.app import recommend as use_case
    from rlrec.app.opening import ready

    ready(store)
    settings().source = "<stdin>" if source == "-" else source
    kind, refused = _line_type(), 0

    def answers() -> Iterator[list[Any]]:
        nonlocal refused
        for group in reading.groups(source, eager=seed is None, flush=True):
            asked = [_request(kind, use_case.Request, number, text) for number, text in group]
            made = use_case.recommend_group(store, asked, seed=seed, dry_run=dry_run)
            refused += sum(isinstance(answer, InputError) for answer in made)
            yield [_answer(answer) for answer in made]

    show.stream(answers())
    if refused:
        raise LinesRefused(f"{refused} line{'s' if refused > 1 else ''} refused, the rest is stored")


def _request(kind: Any, request: Any, number: int, text: bytes) -> Any:
    try:
        line = reading.decode(text, kind, line=number)
        for field in ("session", "user", "request_id"):
            _check_key(field, getattr(line, field), number)
        for arm in line.arms or ():
            _check_key("arms", arm, number)
        if line.k < 1:
            raise InputError(f"k is {line.k}", hint="it is 1 or more", field="k", line=number)
    except InputError as error:
        return error
    return request(
        policy=line.policy,
        experiment=line.experiment,
        session=line.session,
        user=line.user,
        context=line.context,
        size=line.k,
        arms=line.arms,
        request_id=line.request_id,
        number=number,
    )


def _check_key(field: str, key: str | None, number: int) -> None:
    if key is None:
        return
    try:
        parse_key(key)
    except InputError as error:
        error.field, error.line = field, number
        raise


def _answer(answer: Any) -> Any:
    if not isinstance(answer, InputError):
        return answer
    said = answer.message if answer.hint is None else f"{answer.message}: {answer.hint}"
    return {"line": answer.line, "error": said, "field": answer.field}
