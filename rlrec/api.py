"""This module is the Python interface for notebooks and programs. It offers each command as a method that checks its
input in the same way as the command."""

from __future__ import annotations

import inspect
import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from datetime import datetime
from functools import partial
from operator import index
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar, get_args

import click

from rlrec.cli.commands import COMMANDS, load_command
from rlrec.cli.commands.requests import feedback, recommend
from rlrec.cli.doors import calls
from rlrec.cli.doors.frames import Frame, Records, Result, import_library, to_result
from rlrec.cli.output import plain
from rlrec.cli.program.shared import Settings
from rlrec.cli.text.lines import decode
from rlrec.cli.text.values import parse_clock
from rlrec.errors import InputError, suggest
from rlrec.log_fields import STATED_FIELDS

__all__ = ["Log", "Namespace", "Recommender", "Records", "Result"]

if TYPE_CHECKING:
    import pandas
    import pyarrow

    from rlrec.app.upkeep.export_log import LogLine
    from rlrec.signatures import Commands
else:
    Commands = object

T = TypeVar("T")
LEFT_OUT = {  # commands that are no methods
    "pipe": "recommend and feedback keep everything warm",
    "serve": "a server is a process of its own",
    "screen": "a server is a process of its own",
    "config": "a program states its options, whatever rlrec.toml and the environment say",
    "demo": "it calls other commands, in a store of its own",
    "help": "help(store.evaluate) shows the help of a command",
}
POSITIONAL = {"recommend": ("policy",), "feedback": ("decision_id", "events")}  # fields of a line that are positional
LINE_ONLY = {  # fields of lines that no option has, or that have another type
    "events": Mapping[str, float] | None, "request_id": str | None, "censor": bool | None,
    "arms": Sequence[str | Mapping[str, Any]] | None,
}  # fmt: skip
STREAM_OPTIONS = {"input", "on_error", "rejects", "uncensor", "candidates"}  # options without use for a single line


class _Thread(threading.local):
    """A _Thread holds a separate cache for each thread. If several threads changed one shared cache, they would mix up
    beliefs."""

    def __init__(self) -> None:
        from rlrec.app.serving.cache import ServingCache

        self.cache = ServingCache()


class Recommender(Commands):
    """A Recommender is an open store; `rlrec.open(db)` makes one. Close it, or use it in a `with` block. Threads and
    forked processes may share it.

    The commands are methods: `store.evaluate("home")`, `store.policy.create("home", kind="ucb")`. Only commands that
    make no sense in a program, such as `serve`, are left out. `help(store.policy.create)` shows the help of a
    method.

    Methods raise the errors of the commands: `rlrec.errors.RlrecError` or, for wrong input, its subclass InputError,
    which names the wrong field."""

    def __init__(self, db: str, *, now: str | None = None, notice: Callable[[str], None] | None = None) -> None:
        from rlrec.app.opening import Store

        self._db = db
        self.store = Store(db, now=None if now is None else parse_clock(now), notice=notice or _to_stderr)
        self._thread = _Thread()

    def __enter__(self) -> Recommender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.store.close()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Return the method for a command or a group of commands. The command is imported when its method is first
            used."""
            command = name.rstrip("_").replace("_", "-")
            if command not in COMMANDS or command in LEFT_OUT:
                hint = LEFT_OUT.get(command) or suggest(name, dir(self)) or "`rlrec -h` lists the commands"
                raise AttributeError(f"no command {name}: {hint}")
            value = vars(self)[name] = self._method(load_command(command), name)
            return value

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *map(calls.python_name, COMMANDS.keys() - LEFT_OUT.keys())})

    def _read_log(self, log: str | None = None) -> Log:
        """Return the decisions that pass a filter, such as `policy=home`; without a filter, return all decisions."""
        from rlrec.app.upkeep.export_log import export_log

        return Log(partial(export_log, self.store, log=log))

    def _method(self, command: click.Command, name: str) -> Any:
        """Return a command as a function, or a group of commands as a Namespace. name: the name under which Python code
        calls the command or group."""
        if isinstance(command, click.Group):
            commands = {calls.python_name(key): subcommand for key, subcommand in command.commands.items()}
            methods: dict[str, Any] = {
                key: partial(self._method, subcommand, f"{name}.{key}") for key, subcommand in commands.items()
            }
            if name == "log":
                methods["show"] = lambda: self._read_log  # so that store.log("policy=home") gives decisions
            return Namespace(name, methods, command.help or "")
        signature, run = calls.signature(command), partial(self._answer, command)
        if name in POSITIONAL:
            line_type = (recommend if name == "recommend" else feedback).line_type()
            signature, run = line_signature(line_type, signature, POSITIONAL[name]), getattr(self, f"_{name}")
        return calls.bind_signature(name, calls.documentation(command, signature), signature, run)

    def _answer(self, command: click.Command, /, **values: Any) -> Result | Records | None:
        settings = Settings()
        settings.db, settings.now, settings.notify = self._db, self.store.now, self.store.notice
        return calls.answer(command, settings, values)

    def _recommend(self, *, seed: SupportsIndex | None = None, dry_run: bool = False, **values: Any) -> Result:
        from rlrec.app.requests import recommend as use_case
        from rlrec.app.serving.statements import add_typed

        for rule, pairs in [(rule, values.pop(rule)) for rule in recommend.RULE_OPTIONS if rule in values]:
            values["page"] = deepcopy(dict(values.get("page") or {}))
            add_typed(values["page"], rule, [(str(name), str(value)) for name, value in (pairs or {}).items()])
        seed_number = None if seed is None else _seed(seed)
        if self.store.now is not None and not dry_run:
            from rlrec.app.audit.integrity.clock import refuse_far_ahead

            refuse_far_ahead(self.store)
        request = _line(recommend.line_type(), values)
        cache = self._thread.cache
        return to_result(use_case.recommend(self.store, request, seed=seed_number, dry_run=dry_run, cache=cache))

    def _feedback(self, *, dry_run: bool = False, **values: Any) -> Result:
        from rlrec.app.opening import open_store
        from rlrec.app.requests import feedback as use_case

        line = feedback.line_of(_line(feedback.line_type(), values), use_case.Line)
        if isinstance(line, InputError):
            raise line
        if not dry_run:
            return to_result(use_case.feedback(self.store, line))
        with open_store(self._db, now=self.store.now, notice=self.store.notice) as store, store.rehearsal():
            return to_result(use_case.feedback(store, line))


class Namespace:
    """A Namespace has the commands of a group as methods. Calling a Namespace calls the command `show` of its group."""

    def __init__(self, name: str, methods: Mapping[str, Callable[[], Any]], text: str) -> None:
        self._name, self._methods, self.__doc__ = name, methods, text
        if "show" in methods:
            self.__signature__ = inspect.signature(self.show)

    def __getattr__(self, name: str) -> Any:
        if name not in self._methods:
            hint = suggest(name, [*self._methods]) or f"there are {', '.join(self._methods)}"
            raise AttributeError(f"no command {self._name}.{name}: {hint}")
        value = vars(self)[name] = self._methods[name]()
        return value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.show(*args, **kwargs)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._methods})


def line_signature(line_type: Any, signature: inspect.Signature, positional_names: Sequence[str]) -> inspect.Signature:
    """Return the signature of the method for a command that reads a stream of lines. It has a parameter for each field
    of one line, and a parameter for each option of the command that is useful for a single line.

    line_type: the type of a line; signature: the signature of the command; positional_names: the names of the
    parameters that may be given without a name."""
    from msgspec.structs import fields

    parameters = {name: parameter for name, parameter in signature.parameters.items() if name not in STREAM_OPTIONS}
    for field in fields(line_type):
        name = field.encode_name
        if name in LINE_ONLY:
            parameters[name] = inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=LINE_ONLY[name]
            )
        elif field.required:
            annotation = get_args(parameters[name].annotation)[0]
            parameters[name] = parameters[name].replace(default=inspect.Parameter.empty, annotation=annotation)
    positional_parameters = [
        parameters.pop(name).replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in positional_names
    ]
    return inspect.Signature([*positional_parameters, *parameters.values()])


class Log(Frame):
    """A Log gives rows of the log: decisions with the keys of `export-log`, or slots, or events. Each loop through the
    Log reads the rows from the store again.

    read: a function that returns the rows; with `has_details=True`, the rows include the rewards of slots. schema: a
    function that gets the module pyarrow and returns the schema of the rows."""

    def __init__(self, read: Callable[..., Iterator[LogLine]], schema: Callable[[Any], Any] | None = None) -> None:
        self._read, self._schema = read, schema or _log_schema

    def __iter__(self) -> Iterator[LogLine]:
        return self._read()

    def __repr__(self) -> str:
        return "<rows of the log: to_pandas(), to_polars() and to_arrow() make a frame of them, a loop reads them>"

    def slots(self) -> Log:
        """Return a Log with a row for each slot. The row has the reward of the slot, and the keys of the decision to
        which the slot belongs."""
        return Log(partial(_rows_of, self._read, "slate"), partial(_inner_schema, "slate"))

    def events(self) -> Log:
        """Return a Log with a row for each event. The row has the keys of the decision to which the event belongs."""
        return Log(partial(_rows_of, self._read, "events"), partial(_inner_schema, "events"))

    def to_arrow(self) -> pyarrow.Table:
        """Return the rows as a table of Arrow. Contexts and states, whose keys are not known in advance, become JSON
        texts. Rows are converted in batches, so that only the table is in memory as a whole. Raise ImportError without
        pyarrow."""
        pa = import_library("pyarrow")
        schema = self._schema(pa)
        batches = (pa.RecordBatch.from_pylist(rows, schema) for rows in _batches(map(_arrow_row, self)))
        return pa.Table.from_batches(batches, schema)

    def to_pandas(self) -> pandas.DataFrame:
        """Return a pandas DataFrame with the rows. Contexts, slates and events are Python objects, and `at` is a time.
        Raise ImportError without pandas."""
        pd = import_library("pandas")
        frame = pd.DataFrame(list(self))
        return frame.assign(at=pd.to_datetime(frame["at"], utc=True)) if len(frame) else self.to_arrow().to_pandas()


DECISION_KEYS = (  # keys that the rows of slots and events have as well
    "decision_id", "request_id", "session", "user", "visit", "step", "policy", "version", "experiment", "variant",
    "route", "at", "context",
)  # fmt: skip


def _rows_of(read: Callable[..., Iterator[LogLine]], key: str) -> Iterator[LogLine]:
    """Yield a row for each slot, or for each event, of the decisions. The row also has the DECISION_KEYS of its
    decision. The row of a slot also has the reward of the slot.

    read: a function that returns the decisions; key: `slate` for slots, or `events`."""
    for decision in read(has_details=True):
        decision_columns = {name: decision.get(name) for name in DECISION_KEYS}
        for row in decision[key]:
            reward_column = {"reward": decision["rewards"][row["position"]]} if key == "slate" else {}
            yield {**decision_columns, **row, **reward_column}


def _inner_schema(key: str, pa: Any) -> Any:
    decisions = _log_schema(pa)
    row_type = decisions.field(key).type.value_type
    fields = {name: decisions.field(name).type for name in (*DECISION_KEYS, *(["reward"] if key == "slate" else []))}
    return pa.schema(fields | {row_type.field(i).name: row_type.field(i).type for i in range(row_type.num_fields)})


def _log_schema(pa: Any) -> Any:
    text, integer, number, time = pa.string(), pa.int64(), pa.float64(), pa.timestamp("us", tz="UTC")
    kinds = {int: integer, float: number, bool: pa.bool_(), str: text}
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
        **{field.key: kinds[field.kind] for field in STATED_FIELDS},
    })  # fmt: skip


def _arrow_row(row: LogLine) -> LogLine:
    """Return a row in which times are datetimes, and objects whose keys are not known in advance are JSON texts."""
    texts = {name: json.dumps(row[name], ensure_ascii=False) for name in ("context", "state") if name in row}
    events = [event | {"at": datetime.fromisoformat(event["at"])} for event in row.get("events", ())]
    return row | texts | {"at": datetime.fromisoformat(row["at"]), "events": events}


def _batches(rows: Iterator[T], size: int = 1_000) -> Iterator[list[T]]:
    from itertools import islice

    while batch := list(islice(rows, size)):
        yield batch


def _line(line_type: type[T], values: Mapping[str, Any]) -> T:
    """Return a line of input with these values, by the name of the field. The values are checked as strictly as a line
    that is read. Raise InputError for wrong values."""
    json_text = plain.dumps_fields({name: value for name, value in values.items() if value is not None})
    return decode(json_text.encode("utf-8", "surrogatepass"), line_type)


def _seed(seed: SupportsIndex) -> int:
    """Return a seed as an int. The seed may have the integer type of any library. Raise InputError if the seed is no
    whole number of 64 bits."""
    try:
        number = index(seed)
    except TypeError:
        number = -1
    if not 0 <= number < 2**64:
        raise InputError(f"seed is {seed}", hint="it is a whole number of 64 bits", field="seed")
    return number


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)
