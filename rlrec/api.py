"""The door for notebooks and programs: the use cases of the commands as methods, with the same checks of input."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from importlib import import_module
from operator import index
from typing import TYPE_CHECKING, Any, SupportsIndex, TypedDict, TypeVar, Unpack

from rlrec.cli.commands.requests import feedback, recommend
from rlrec.cli.output import plain
from rlrec.cli.text.lines import decode
from rlrec.errors import InputError
from rlrec.times import parse as parse_time

if TYPE_CHECKING:
    import pandas
    import pyarrow

    from rlrec.app.evaluation.passes.estimates import EstimateRow
    from rlrec.app.policies.policy_beliefs import PolicyBelief
    from rlrec.app.requests.feedback import Result as FeedbackResult
    from rlrec.app.requests.recommend import Answer
    from rlrec.app.upkeep.export_log import Record

T = TypeVar("T")
Checked = TypeVar("Checked")


class EvaluateOptions(TypedDict, total=False):
    """The options of `rlrec evaluate`, with its defaults."""

    estimators: str | None
    interval: str
    level: float
    cluster: str | None
    log: str | None
    reward: str | None
    gamma: float
    by: str | None
    greedy: bool
    reward_model: str | None
    reward_model_by: str | None
    reward_model_hash: int
    position: str | None
    seed: int
    target_samples: int


class _OfThread(threading.local):
    """A cache for each thread: several that changed one would mix one belief with another."""

    def __init__(self) -> None:
        from rlrec.app.serving.cache import ServingCache

        self.cache = ServingCache()


class Recommender:
    """An open store; `rlrec.open(db)` makes one. Close it, or use it in a `with` block. Threads and forked processes
    may share it.

    Errors are those of the commands: `rlrec.errors.RlrecError`, of which InputError names the field that is wrong."""

    def __init__(self, db: str, *, now: str | None = None, notice: Callable[[str], None] | None = None) -> None:
        from rlrec.app.opening import Store

        self.store = Store(db, now=None if now is None else parse_time(now), notice=notice or _to_stderr)
        self._of_thread = _OfThread()

    def __enter__(self) -> Recommender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.store.close()

    def recommend(
        self, policy: str | None = None, *, session: str, experiment: str | None = None, user: str | None = None,
        context: Mapping[str, Any] | None = None, k: int = 1, arms: Sequence[str] | None = None,
        request_id: str | None = None, seed: int | None = None, dry_run: bool = False,
    ) -> Answer:  # fmt: skip
        """The slate of one request, drawn and logged, with the keys of `rlrec recommend --json`.
        dry_run: draw, and store nothing."""
        from rlrec.app.requests import recommend as use_case

        seed = None if seed is None else _seed(seed)
        if self.store.now is not None and not dry_run:
            from rlrec.app.audit.integrity.clock import refuse_far_ahead

            refuse_far_ahead(self.store)
        line = _line(
            recommend.line_type(), policy=policy, session=session, experiment=experiment, user=user, context=context,
            k=k, arms=arms, request_id=request_id,
        )  # fmt: skip
        request = _raised(recommend.checked(line))
        return use_case.recommend(self.store, request, seed=seed, dry_run=dry_run, cache=self._of_thread.cache)

    def feedback(
        self, decision_id: int | None = None, events: Mapping[str, float] | None = None, *,
        request_id: str | None = None, position: int | None = None, at: str | datetime | None = None,
        key: str | None = None, censor: bool | None = None,
    ) -> FeedbackResult:  # fmt: skip
        """Record events of a decision, named by its id or by its request: how many were new, and the reward now."""
        from rlrec.app.requests import feedback as use_case

        line = _line(
            feedback.line_type(), decision_id=decision_id, request_id=request_id, position=position, events=events,
            at=at, key=key, censor=censor,
        )  # fmt: skip
        fields = (getattr(line, name) for name in use_case.Line._fields[:-1])  # all but the number of a line
        return use_case.feedback(self.store, _raised(feedback.checked(use_case.Line(*fields))))

    def evaluate(self, *targets: str, **options: Unpack[EvaluateOptions]) -> Estimates:
        """Estimates of what policies would have earned, as `rlrec evaluate` makes them."""
        from rlrec.app.judging import evaluate as use_case

        request = use_case.Request(targets=targets, **options)
        if min(request.seed, request.target_samples) < 0:
            raise InputError("seed and target_samples are 0 or more")
        estimates = use_case.evaluate(self.store, request)
        return Estimates(estimates, notes=use_case.explained(estimates))

    def policy(self, reference: str, *, context: Mapping[str, Any] | None = None) -> PolicyBelief:
        """A policy, or its version NAME@V: its belief about every arm, with the keys of `rlrec policy show --json`."""
        from rlrec.app.policies import policy_beliefs as use_case

        return use_case.show(self.store, reference, context)

    def log(self, log: str | None = None) -> Log:
        """The decisions of a filter, such as `policy=home,since=2026-01-01`; all of them without one."""
        from rlrec.app.upkeep.export_log import export_log

        return Log(lambda: export_log(self.store, log=log))


class Estimates(list["EstimateRow"]):
    """Estimates, a row each. notes: explanations of the reasons that occur."""

    def __init__(self, rows: Iterable[EstimateRow], *, notes: Sequence[str]) -> None:
        super().__init__(rows)
        self.notes = notes

    def __repr__(self) -> str:
        """The table of `rlrec evaluate`."""
        from rlrec.cli.commands.judging import evaluate
        from rlrec.cli.output import tables
        from rlrec.cli.text.text import Screen

        return tables.view(evaluate.view(self.to_json(), self[0].by, self.notes), Screen()) if self else "[]"

    def to_json(self) -> list[dict[str, Any]]:
        """The rows as `evaluate --json` has them."""
        return [row.to_json() for row in self]

    def to_arrow(self) -> pyarrow.Table:
        """A column for each key of `to_json`. Raises ImportError without pyarrow."""
        rows = self.to_json()
        names = dict.fromkeys(name for row in rows for name in row)
        return _library("pyarrow").table({name: [row.get(name) for row in rows] for name in names})

    def to_pandas(self) -> pandas.DataFrame:
        """A column for each key of `to_json`. Raises ImportError without pandas."""
        return _library("pandas").DataFrame(self.to_json())


class Log:
    """Decisions of the log, with the keys of `export-log`; read from the store each time they are gone through."""

    def __init__(self, read: Callable[[], Iterator[Record]]) -> None:
        self._read = read

    def __iter__(self) -> Iterator[Record]:
        return self._read()

    def to_arrow(self) -> pyarrow.Table:
        """A row for each decision; contexts and states, whose keys are anybody's, as JSON. Only the table itself is in
        memory. Raises ImportError without pyarrow."""
        pa = _library("pyarrow")
        schema = _log_schema(pa)
        batches = (pa.RecordBatch.from_pylist(rows, schema) for rows in _batches(map(_arrow_row, self)))
        return pa.Table.from_batches(batches, schema)

    def to_pandas(self) -> pandas.DataFrame:
        """A row for each decision, with its context, slate and events as Python objects, and `at` as a time. Raises
        ImportError without pandas."""
        pd = _library("pandas")
        frame = pd.DataFrame(list(self))
        return frame.assign(at=pd.to_datetime(frame["at"], utc=True)) if len(frame) else frame


def _log_schema(pa: Any) -> Any:
    text, integer, number, time = pa.string(), pa.int64(), pa.float64(), pa.timestamp("us", tz="UTC")
    slot = {
        "position": integer, "arm": text, "propensity": number, "marginal": number, "score": number,
        "min_propensity": number, "censored": pa.bool_(), "rounded": pa.bool_(),
    }  # fmt: skip
    event = {"position": integer, "kind": text, "value": number, "at": time, "key": text}
    integers = dict.fromkeys(("decision_id", "visit", "step", "version", "k", "seed", "belief_seq"), integer)
    return pa.schema({
        **dict.fromkeys(("request_id", "session", "user", "policy", "experiment", "variant", "route"), text),
        **integers, "at": time, "propensity": number, "log_propensity": number, "reward": number,
        "slate": pa.list_(pa.struct(slot)), "events": pa.list_(pa.struct(event)), "eligible": pa.list_(text),
        "context": text, "state": text,
    })  # fmt: skip


def _arrow_row(record: Record) -> Record:
    return record | {
        "at": datetime.fromisoformat(record["at"]),
        "context": json.dumps(record["context"], ensure_ascii=False),
        "state": json.dumps(record["state"], ensure_ascii=False),
        "events": [event | {"at": datetime.fromisoformat(event["at"])} for event in record["events"]],
    }


def _batches(rows: Iterator[T], size: int = 1_000) -> Iterator[list[T]]:
    from itertools import islice

    while batch := list(islice(rows, size)):
        yield batch


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"this needs {name}: pip install 'rlrec[notebook]'") from error


def _line(kind: type[T], **values: Any) -> T:
    """The line of a stream that has these values, decoded as strictly. Raises InputError."""
    try:
        raw = plain.dumps({name: value for name, value in values.items() if value is not None})
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(str(error)) from None
    return decode(raw.encode("utf-8", "surrogatepass"), kind)


def _seed(seed: SupportsIndex) -> int:
    """A seed, of whatever library its integer is. Raises InputError."""
    try:
        number = index(seed)
    except TypeError:
        number = -1
    if not 0 <= number < 2**64:
        raise InputError(f"seed is {seed}", hint="it is a whole number of 64 bits", field="seed")
    return number


def _raised(checked: Checked | InputError) -> Checked:
    if isinstance(checked, InputError):
        raise checked
    return checked


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)
