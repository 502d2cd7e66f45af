"""Table definitions. Times are microseconds since 1970 UTC; JSON is canonical text; a sum never includes a prior.

The promises of a table are constraints, so that no code path can store what must not be there. The type of a
column is one that SQLite's STRICT tables and PostgreSQL both enforce.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import CheckConstraint, Column, ForeignKeyConstraint, Index, UniqueConstraint, text
from sqlalchemy.dialects import sqlite
from sqlalchemy.types import TypeEngine

from rlrec.log_fields import DECISION, EVENT, FINITE, FLAG, KEY, LOG_PROBABILITY, SLOT, FieldCheck, LogField

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

BIG = sa.BigInteger().with_variant(sqlite.INTEGER(), "sqlite")
SMALL = sa.SmallInteger().with_variant(sqlite.INTEGER(), "sqlite")
REAL: TypeEngine[float] = sa.Double().with_variant(sqlite.REAL(), "sqlite")
BYTES = sa.LargeBinary().with_variant(sqlite.BLOB(), "sqlite")
TEXT = sa.Text()
KINDS: dict[type, TypeEngine[Any]] = {int: BIG, bool: SMALL, float: REAL, str: TEXT, bytes: BYTES}


def _check(name: str, check: FieldCheck) -> CheckConstraint:
    return CheckConstraint(check.test.format(name), name=f"{name}_{check.word}")


def _choice(name: str, *words: str) -> CheckConstraint:
    return CheckConstraint(f"{name} IN ({', '.join(repr(word) for word in words)})", name=f"{name}_known")


def _partial(name: str, column: str, *, condition: str, unique: bool = False) -> Index:
    return Index(name, column, unique=unique, sqlite_where=text(condition), postgresql_where=text(condition))


def _table(name: str, *parts: Column[Any] | sa.Constraint | Index, rowid: bool = True) -> sa.Table:
    """A table of these parts, behind an `id` where none of its columns is a key."""
    keyed = any(isinstance(column, Column) and column.primary_key for column in parts)
    all_parts = parts if keyed else (Column("id", BIG, primary_key=True), *parts)
    return sa.Table(name, metadata, *all_parts, sqlite_strict=True, sqlite_with_rowid=rowid)


def _ref(name: str, target: str, *, null: bool = False, key: bool = False) -> Column[Any]:
    return Column(name, BIG, sa.ForeignKey(f"{target}.id"), nullable=null, primary_key=key, autoincrement=False)


def _refs(*targets: str, key: bool = False) -> list[Column[Any]]:
    """References that are named after their tables; those with a question mark may be null."""
    return [_ref(f"{name.rstrip('?')}_id", name.rstrip("?"), null=name.endswith("?"), key=key) for name in targets]


def _columns(kind: TypeEngine[Any], *names: str) -> list[Column[Any]]:
    """Columns of one type; those whose name ends with a question mark may be null."""
    return [Column(name.rstrip("?"), kind, nullable=name.endswith("?")) for name in names]


def _fields(fields: Sequence[LogField], *key: str) -> Iterator[Column[Any] | CheckConstraint]:
    """The columns of fields of the log, and their checks."""
    for field in fields:
        checks = [_check(field.name, field.check)] if field.check and field.is_added else []
        refers = [sa.ForeignKey(f"{field.table}.id")] if field.table else []
        yield Column(
            field.name, KINDS[field.kind], *refers, *checks, nullable=field.optional, primary_key=field.name in key,
            autoincrement=False,
        )  # fmt: skip
        if field.check and not field.is_added:
            yield _check(field.name, field.check)


def _sums(prefix: str = "") -> list[Column[Any]]:
    return _columns(REAL, *(prefix + name for name in ("pulls", "reward_sum", "reward_squares")))


def _beliefs(name: str, *columns: Column[Any]) -> sa.Table:
    """A table of sums by version, bucket and arm. columns: its further ones."""
    finite = (_check(name, FINITE) for name in ("pulls", "reward_sum", "reward_squares"))
    return _table(
        name, _ref("version_id", "version", key=True), Column("bucket", BIG, primary_key=True, autoincrement=False),
        _ref("arm_id", "arm", key=True), *columns, Column("ordinal", BIG, nullable=False), *_sums(),
        Column("extra", BYTES), *finite, rowid=False,
    )  # fmt: skip


def _decision_table(name: str, *columns: Column[Any] | sa.Constraint) -> sa.Table:
    """A table that has a row, at most, for each decision."""
    return _table(name, _ref("decision_id", "decision", key=True), *columns)


# One row: what `init` decided for the whole store, and today's catalogue: its revision (raised by every change of an
# arm) and the eligible set it makes (null until somebody needs it). removals: how many commands deleted decisions;
# removed_to: the largest id of these, which no new decision gets (null: none).
settings = _table(
    "settings",
    Column("id", SMALL, primary_key=True, autoincrement=False),
    *_columns(BIG, "created_at", "session_timeout_us", "catalogue_revision", "removals?", "removed_to?"),
    Column("salt", TEXT, nullable=False),
    _ref("catalogue_id", "eligible_set", null=True),
    CheckConstraint("id = 1", name="one_row"),
    CheckConstraint("session_timeout_us > 0", name="session_timeout_positive"),
)

# Who changed what, when: commands that import, define, freeze, promote. Never a single recommend or feedback.
run = _table("run", *_columns(TEXT, "command", "options", "result?"), Column("at", BIG, nullable=False))

# The catalogue as it is today. features: canonical JSON; retired_at: null while the arm may be served.
arm = _table(
    "arm",
    *_columns(TEXT, "key", "features"),
    *_columns(BIG, "added_at", "retired_at?"),
    UniqueConstraint("key"),
    _check("key", KEY),
)

# Every change of an arm, by catalogue revision; append-only. features and retired: after the change.
arm_history = _table(
    "arm_history",
    _ref("arm_id", "arm", key=True),
    Column("revision", BIG, primary_key=True, autoincrement=False),
    Column("at", BIG, nullable=False),
    Column("features", TEXT, nullable=False),
    Column("retired", SMALL, nullable=False),
    _check("retired", FLAG),
    rowid=False,
)

# Content-addressed: an eligible set is the ascending JSON array of its arm ids; a context is its canonical JSON.
eligible_set = _table(
    "eligible_set",
    Column("digest", BYTES, nullable=False),
    Column("size", BIG, nullable=False),
    Column("arms", TEXT, nullable=False),
    UniqueConstraint("digest"),
    CheckConstraint("size > 0", name="size_positive"),
)
context = _table(
    "context",
    Column("digest", BYTES, nullable=False),
    Column("body", TEXT, nullable=False),
    UniqueConstraint("digest"),
)

# Reward definitions; they never change. weights: by event kind, JSON (see `policies._terms`).
reward = _table(
    "reward",
    *_columns(TEXT, "name", "weights", "learn", "late"),
    *_columns(BIG, "window_us", "created_at"),
    *_columns(REAL, "default_value", "clip_low?", "clip_high?"),
    UniqueConstraint("name"),
    CheckConstraint("window_us >= 0", name="window_positive"),
    CheckConstraint("clip_low <= clip_high", name="clip_order"),
    *(_check(name, FINITE) for name in ("default_value", "clip_low", "clip_high")),
    _choice("learn", "served", "settled"),
    _choice("late", "count", "ignore"),
)

# A policy never changes. A variant of an experiment is a policy too (`POLICY@EXPERIMENT/VARIANT`, with its base).
policy = _table(
    "policy",
    *_columns(TEXT, "name", "kind", "params", "definition"),
    _ref("base_id", "policy", null=True),
    Column("created_at", BIG, nullable=False),
    UniqueConstraint("name"),
)

# Numbered beliefs of policies: immutable ones (frozen, trained), and those that still learn. `seq` and `ordinal` are
# the policy's counters at its creation. `entered_to`: the last decision of the policy that this belief holds (ids are
# drawn under the head's lock, so within one policy they are in order of commit and of time); null: every one.
version = _table(
    "version",
    _ref("policy_id", "policy"),
    *_columns(BIG, "number", "seq", "ordinal", "entered_to?", "created_at"),
    *_columns(TEXT, "status", "learned_from", "parameters?", "report?"),
    _ref("reward_id", "reward"),
    _ref("parent_id", "version", null=True),
    UniqueConstraint("policy_id", "number"),
    CheckConstraint("number > 0", name="number_positive"),
    _choice("status", "learning", "frozen", "retired"),
)

# The one mutable row of a policy. Its lock is the policy's lock; seq counts the transactions that changed a belief;
# pruned_to: the newest decision of the policy that was pruned.
policy_head = _table(
    "policy_head",
    _ref("policy_id", "policy", key=True),
    *_columns(BIG, "seq", "ordinal", "pruned_to?"),
    _ref("live_id", "version"),
)

# Every promotion of a version, and which version was live before it; rolled_back_at: null while it stands.
promotion = _table(
    "promotion",
    *_refs("policy", "version"),
    _ref("previous_id", "version"),
    *_columns(BIG, "at", "rolled_back_at?"),
    Index(None, "policy_id", "id"),
)

# Priors of arms that do not have the default of the kind: alpha and beta (pseudo-counts of successes and failures).
prior = _table(
    "prior",
    *_refs("version", "arm", key=True),
    *_columns(REAL, "alpha", "beta"),
    CheckConstraint("alpha > 0 AND alpha <= 1e308", name="alpha_positive"),
    CheckConstraint("beta > 0 AND beta <= 1e308", name="beta_positive"),
    rowid=False,
)

# The sums that are served now, and the change of every transaction: the belief at seq s is, per arm and bucket, the
# newest delta with seq <= s. Buckets and ordinals carry forgetting (0 where a policy does not forget); `extra`
# carries further sums of kinds that need more than three, packed doubles. Where contexts are sparse, bucket 0 has the
# counts of an arm (extra: what the weights of a fit predict of them), and bucket 1 + j its sums on column j: of x_j
# squared (pulls), of what is left of the reward times x_j (reward_sum) and of x_j (reward_squares). Columns that no
# context had are not stored.
belief = _beliefs("belief")
belief_delta = _beliefs("belief_delta", Column("seq", BIG, primary_key=True, autoincrement=False), *_sums("d_"))

# Sums of slots that a belief holds and whose rows were pruned, faded until `ordinal`: without them nothing would tell
# what the belief should be.
pruned_sums = _beliefs("pruned_sums")

# Weights of arms of a trained version, packed doubles; of a version with sparse contexts that was fitted to a log, the
# columns (four bytes each) and then the weights, around which its sums are taken. They never change.
arm_weights = _table(
    "arm_weights",
    *_refs("version", "arm", key=True),
    Column("weights", BYTES, nullable=False),
    rowid=False,
)
# The process that trains a policy alone, and until when: times of the database's clock, never of --now.
lease = _table(
    "lease",
    _ref("policy_id", "policy", key=True),
    *_columns(TEXT, "holder", "token"),
    *_columns(BIG, "taken_at", "expires_at"),
)

# Users, by the key that requests give. digest: 64 bits of the key (`contents.key_digest`). Clusters of estimates,
# their blocks and folds follow it, never the id: the same log in another order, or in another store, gives the same
# figures.
users = _table(
    "users", Column("key", TEXT, nullable=False), Column("digest", BIG), UniqueConstraint("key"), _check("key", KEY)
)
# Sessions, by the key that requests give. `split` is drawn once, when the session is created: 0 train, 1 tune, 2
# gate. digest: as of users.
session = _table(
    "session",
    Column("key", TEXT, nullable=False),
    _ref("user_id", "users", null=True),
    Column("split", SMALL, nullable=False),
    *_columns(BIG, "created_at", "digest?"),
    UniqueConstraint("key"),
    _check("key", KEY),
    CheckConstraint("split IN (0, 1, 2)", name="split_known"),
)
# Visits of a session, from one timeout to the next. recent: arms in the state of its next decision, JSON. history:
# how many slots the visit has shown, and the last of them, packed (`app/serving/open_sessions.py`); null where not
# stored.
visit = _table(
    "visit",
    _ref("session_id", "session", key=True),
    Column("number", BIG, primary_key=True, autoincrement=False),
    *_columns(BIG, "started_at", "last_at", "steps"),
    Column("recent", TEXT, nullable=False),
    Column("ended_at", BIG),
    Column("history", BYTES),
    CheckConstraint("number > 0", name="number_positive"),
    CheckConstraint("steps >= 0", name="steps_positive"),
    rowid=False,
)

# Experiments split users or sessions (`unit`) by a digest with their own salt; definition: the options of its
# creation.
experiment = _table(
    "experiment",
    *_columns(TEXT, "name", "unit", "salt", "status", "definition"),
    *_columns(BIG, "created_at", "stopped_at?"),
    UniqueConstraint("name"),
    _choice("unit", "user", "session"),
    _choice("status", "running", "stopped"),
)
# The variants of an experiment, each with a policy of its own and a share of the units.
variant = _table(
    "variant",
    _ref("experiment_id", "experiment"),
    Column("label", TEXT, nullable=False),
    _ref("policy_id", "policy"),
    Column("weight", REAL, nullable=False),
    UniqueConstraint("experiment_id", "label"),
    CheckConstraint("weight > 0 AND weight <= 1e308", name="weight_positive"),
)
# The variant of each unit, a user or a session as the experiment says; it stays for ever.
assignment = _table(
    "assignment",
    _ref("experiment_id", "experiment"),
    _ref("user_id", "users", null=True),
    *_refs("session?", "variant"),
    Column("at", BIG, nullable=False),
    CheckConstraint("(user_id IS NULL) <> (session_id IS NULL)", name="one_unit"),
    UniqueConstraint("experiment_id", "user_id"),
    UniqueConstraint("experiment_id", "session_id"),
)

# A name that callers use in place of a policy. It shares one namespace with the policies.
route = _table(
    "route",
    Column("name", TEXT, nullable=False),
    Column("created_at", BIG, nullable=False),
    UniqueConstraint("name"),
)
# Every look of a gate of a route at a candidate, whether it passed or not; report: its figures, JSON.
gate_look = _table(
    "gate_look",
    _ref("route_id", "route"),
    Column("at", BIG, nullable=False),
    *_refs("policy", "version"),
    Column("report", TEXT, nullable=False),
    Index(None, "route_id", "at"),
)
# What a route serves, change by change; append-only, the newest one holds. Without a version it is the policy's live
# one; experiment: the ramp that serves instead while it runs. command: what people typed; look: of the gate that let it
# pass; restored: the change that a rollback returned to.
route_change = _table(
    "route_change",
    _ref("route_id", "route"),
    Column("at", BIG, nullable=False),
    *_refs("policy", "version?", "experiment?"),
    Column("command", TEXT, nullable=False),
    _ref("look_id", "gate_look", null=True),
    _ref("restored_id", "route_change", null=True),
    Index(None, "route_id", "id"),
)
# A challenger that is compared with what a route serves, without serving: from one time to another.
shadow = _table(
    "shadow",
    *_refs("route", "policy", "version?"),
    *_columns(BIG, "started_at", "stopped_at?"),
    Index(None, "route_id", "id"),
)

# A logged slate, with everything that is needed to score another policy on it. Fewer slots than `size` are a partial
# page of an imported log. `log_fields` says what the columns are.
decision = _table(
    "decision",
    *_fields(DECISION[1:]),
    UniqueConstraint("session_id", "visit", "step"),
    CheckConstraint("imported = 1 OR (log_propensity IS NOT NULL AND seed IS NOT NULL)", name="live_complete"),
    Index("ix_decision_policy_id_id", "policy_id", "id"),
    _partial("ix_decision_at", "at", condition="imported = 0"),
    _partial("uq_decision_request_key", "request_key", condition="request_key IS NOT NULL", unique=True),
)
# The last decision of every user that was not imported, which an event `return` credits when they come back. It is
# written while some reward weighs that event.
last_decision = _table("last_decision", _ref("user_id", "users", key=True), _ref("decision_id", "decision"))
# The arms of a decision by position.
slot = _table("slot", *_fields(SLOT, "decision_id", "position"), rowid=False)

# The route by which a decision was asked for.
route_decision = _decision_table("route_decision", _ref("route_id", "route"))
# The log of the probability that a challenger would have given to the slate of a decision; null where it has none.
shadow_decision = _table(
    "shadow_decision",
    *_refs("shadow", "decision", key=True),
    Column("log_probability", REAL),
    _check("log_probability", LOG_PROBABILITY),
    rowid=False,
)

# Who picked each slot of an interleaved slate: a letter a position, A for the first ranker and B for the second. The
# propensities of its slots are given these.
team_draft = _decision_table(
    "team_draft", Column("teams", TEXT, nullable=False), CheckConstraint("length(teams) > 0", name="teams_named")
)

event = _table(
    "event",
    *_fields(EVENT, "decision_id", "number"),
    ForeignKeyConstraint(["decision_id", "position"], ["slot.decision_id", "slot.position"]),
    rowid=False,
)
# A feedback key names a whole line, whose content is digested; `at`: null where the line had none.
feedback_key = _table(
    "feedback_key",
    Column("key", TEXT, primary_key=True),
    Column("digest", BYTES, nullable=False),
    Column("at", BIG),
    _ref("decision_id", "decision"),
    _check("key", KEY),
    rowid=False,
)

# The lines that were imported into a policy, by the digest of their bytes and of how often these came before in the
# file.
import_line = _table(
    "import_line",
    _ref("policy_id", "policy", key=True),
    Column("digest", BYTES, primary_key=True),
    _ref("decision_id", "decision"),
    rowid=False,
)

# The candidates that the first stage of a decision drew from a catalogue (null where that is not known), ids in order,
# with their propensities, each given those before; the eligible set of the decision is that of its candidates.
candidate_list = _decision_table(
    "candidate_list",
    _ref("catalogue_id", "eligible_set", null=True),
    *_columns(TEXT, "arms", "propensities"),
    Column("log_propensity", REAL, nullable=False),
    _check("log_propensity", LOG_PROBABILITY),
)

# What an imported line says beside its slate, where it does. Features of arms for that decision alone, in place of the
# catalogue's: {arm key: features}, in a context.
decision_features = _decision_table("decision_features", _ref("context_id", "context"))
# The arms that each position could show, where these differ: JSON, a list of ids for each position.
slot_set = _decision_table("slot_set", Column("arms", TEXT, nullable=False))
# The probability of each eligible arm at the first position, packed doubles in order of their ids.
logged_support = _decision_table("logged_support", Column("probabilities", BYTES, nullable=False))

# Curves of examination: how likely the eye reaches a position, against the first one. Numbered under a name; they
# never change. options: of the command; positions: the curve, JSON; report: how it was estimated, JSON.
position_curve = _table(
    "position_curve",
    *_columns(TEXT, "name", "model", "method", "options", "positions", "report"),
    *_columns(BIG, "number", "created_at"),
    _ref("reward_id", "reward"),
    UniqueConstraint("name", "number"),
    _check("name", KEY),
    CheckConstraint("number > 0", name="number_positive"),
    _choice("model", "pbm", "cascade", "dcm"),
)

# The views for people who write SQL; a migration has their text.
VIEWS = ("v_decision", "v_slot", "v_version")


def time_columns() -> list[Column[Any]]:
    """The times of all rows: of a lease, which ends ahead, and of a line, which its key keeps as it came, none."""
    tables = (table for table in metadata.sorted_tables if table not in (lease, feedback_key))
    return [column for table in tables for column in table.columns if re.fullmatch("at|.*_at", column.name)]
