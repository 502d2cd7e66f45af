"""This module defines the tables for queries: columns, keys and references. Times are microseconds since 1970 UTC, JSON
texts are canonical, and sums never include a prior.

Further guarantees (checks, unique keys, indexes) are constraints of the database, so that no code can store invalid
rows; the migration that creates a table defines them. The column types are types that both SQLite's STRICT tables
and PostgreSQL enforce."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Column
from sqlalchemy.dialects import sqlite
from sqlalchemy.types import TypeEngine

from rlrec.log_fields import DECISION, EVENT, SLOT, LogField

metadata = sa.MetaData()

BIG = sa.BigInteger().with_variant(sqlite.INTEGER(), "sqlite")
SMALL = sa.SmallInteger().with_variant(sqlite.INTEGER(), "sqlite")
REAL: TypeEngine[float] = sa.Double().with_variant(sqlite.REAL(), "sqlite")
BYTES = sa.LargeBinary().with_variant(sqlite.BLOB(), "sqlite")
TEXT = sa.Text()
KINDS: dict[type, TypeEngine[Any]] = {int: BIG, bool: SMALL, float: REAL, str: TEXT, bytes: BYTES}
REFERENCES = {  # for columns that are not named after the table whose id they hold
    "base_id": "policy", "catalogue_id": "eligible_set", "eligible_id": "eligible_set", "holdout_id": "experiment",
    "live_id": "version", "look_id": "gate_look", "parent_id": "version", "person_id": "users",
    "previous_id": "version", "restored_id": "route_change", "superset_id": "eligible_set", "user_id": "users",
}  # fmt: skip


def _table(name: str, *parts: Column[Any] | sa.Constraint, key: Sequence[str] = ()) -> sa.Table:
    """Define a table of these parts. If no key is given, the table gets a column `id` as its first column and key."""
    all_parts = parts if key else (Column("id", BIG), *parts)
    return sa.Table(name, metadata, *all_parts, sa.PrimaryKeyConstraint(*key or ["id"]))


def _columns(kind: TypeEngine[Any], *names: str) -> list[Column[Any]]:
    """Return columns of one type. A column may be null if its name is given with a question mark at the end."""
    return [Column(name.rstrip("?"), kind, nullable=name.endswith("?")) for name in names]


def _ids(*names: str) -> list[Column[Any]]:
    """Return columns with these names, each of which holds ids of another table. The name of this table is in
    REFERENCES; if not, it is the name of the column without `_id`."""
    columns = _columns(BIG, *names)
    for column in columns:
        target = REFERENCES.get(column.name, column.name.removesuffix("_id"))
        column.append_foreign_key(sa.ForeignKey(f"{target}.id"))
    return columns


def _fields(fields: Sequence[LogField]) -> Iterator[Column[Any]]:
    """Yield the columns for fields of the log."""
    for field in fields:
        foreign_keys = [sa.ForeignKey(f"{field.table}.id")] if field.table else []
        yield Column(field.name, KINDS[field.kind], *foreign_keys, nullable=field.optional)


def _sums(prefix: str = "") -> list[Column[Any]]:
    return _columns(REAL, *(prefix + name for name in ("pulls", "reward_sum", "reward_squares")))


def _beliefs(name: str, *columns: Column[Any], key: Sequence[str] = ()) -> sa.Table:
    """Define a table of sums by version, bucket and arm. columns: further columns; key: the names of those further
    columns that are part of the key."""
    return _table(
        name, *_ids("version_id"), *_columns(BIG, "bucket"), *_ids("arm_id"), *columns, *_columns(BIG, "ordinal"),
        *_sums(), *_columns(BYTES, "extra?"), key=["version_id", "bucket", "arm_id", *key],
    )  # fmt: skip


def _decision_table(name: str, *columns: Column[Any]) -> sa.Table:
    """Define a table that has at most one row for each decision."""
    return _table(name, *_ids("decision_id"), *columns, key=["decision_id"])


# One row: settings of the whole store from `init`, and the present catalogue: its revision (raised by every change of
# an arm), and the eligible set of its active arms (null until needed), valid from one time until another (null: at any
# time). removals: the number of commands that deleted decisions; removed_to: the largest id of these, which no new
# decision gets (null: none).
settings = _table(
    "settings", *_columns(SMALL, "id"),
    *_columns(BIG, "created_at", "session_timeout_us", "catalogue_revision", "removals?", "removed_to?"),
    *_columns(TEXT, "salt"), *_ids("catalogue_id?"), *_columns(BIG, "catalogue_from?", "catalogue_until?"), key=["id"],
)  # fmt: skip

# Who changed what, and when: commands that import, define, freeze, promote; never a single recommend or feedback.
run = _table("run", *_columns(TEXT, "command", "options", "result?"), *_columns(BIG, "at"))

# The present catalogue. features: canonical JSON; retired_at: null while the arm may be served, which it may from
# eligible_from on, and before eligible_until; null: at any time.
arm = _table(
    "arm", *_columns(TEXT, "key", "features"),
    *_columns(BIG, "added_at", "retired_at?", "eligible_from?", "eligible_until?"),
)  # fmt: skip

# Every change of an arm, by catalogue revision; append-only. features, retired and the times: after the change.
arm_history = _table(
    "arm_history", *_ids("arm_id"), *_columns(BIG, "revision", "at"), *_columns(TEXT, "features"),
    *_columns(SMALL, "retired"), *_columns(BIG, "eligible_from?", "eligible_until?"), key=["arm_id", "revision"],
)  # fmt: skip

# Names that stand for several arms. Members are the present ones; a group without members is kept.
arm_group = _table("arm_group", *_columns(TEXT, "name"))
group_member = _table("group_member", *_ids("arm_group_id", "arm_id"), key=["arm_group_id", "arm_id"])

# Content-addressed. An eligible set is the ascending JSON array of its arm ids, or of those that only its superset has;
# a context is its canonical JSON.
eligible_set = _table(
    "eligible_set", *_columns(BYTES, "digest"), *_columns(BIG, "size"), *_columns(TEXT, "arms"), *_ids("superset_id?")
)
context = _table("context", *_columns(BYTES, "digest"), *_columns(TEXT, "body"))

# Reward definitions, which never change. weights: by event kind, JSON (see `policies._terms`).
reward = _table(
    "reward", *_columns(TEXT, "name", "weights", "learn", "late"), *_columns(BIG, "window_us", "created_at"),
    *_columns(REAL, "default_value", "clip_low?", "clip_high?"),
)  # fmt: skip

# Policies, which never change. A variant of an experiment is a policy, too (`POLICY@EXPERIMENT/VARIANT`, with its
# base).
policy = _table(
    "policy", *_columns(TEXT, "name", "kind", "params", "definition"), *_ids("base_id?"), *_columns(BIG, "created_at")
)

# Numbered beliefs of policies: immutable ones (frozen, trained), and those that still learn. `seq` and `ordinal` are
# the policy's counters at its creation. `entered_to`: the last decision of the policy that has entered this belief (ids
# are drawn under the head's lock, so within a policy they are in order of commit and of time); null: all have.
# has_omissions: 1 if some of them are in the table `omission`.
version = _table(
    "version", *_ids("policy_id"), *_columns(BIG, "number", "seq", "ordinal", "entered_to?", "created_at"),
    *_columns(TEXT, "status", "learned_from", "parameters?", "report?"), *_ids("reward_id", "parent_id?"),
    *_columns(SMALL, "has_omissions?"),
)  # fmt: skip

# The only mutable row of a policy. Its lock is the policy's lock; seq counts the transactions that changed a belief;
# pruned_to: the newest decision of the policy that was pruned.
policy_head = _table(
    "policy_head", *_ids("policy_id"), *_columns(BIG, "seq", "ordinal", "pruned_to?"), *_ids("live_id"),
    key=["policy_id"],
)  # fmt: skip

# Every promotion of a version, and the version that was live before it; rolled_back_at: null unless it was rolled back.
promotion = _table(
    "promotion", *_ids("policy_id", "version_id", "previous_id"), *_columns(BIG, "at", "rolled_back_at?")
)

# Priors of arms that differ from the default of the kind: alpha and beta (pseudo-counts of successes and failures).
prior = _table("prior", *_ids("version_id", "arm_id"), *_columns(REAL, "alpha", "beta"), key=["version_id", "arm_id"])

# The sums that are served now, and the change in every transaction: the belief at seq s is, per arm and bucket, the
# newest delta with seq <= s. Buckets and ordinals implement forgetting (0 if a policy does not forget); `extra` has
# further sums, packed doubles, for kinds that need more than three. If contexts are sparse, bucket 0 has the counts of
# an arm (extra: what the weights of a fit predict for them), and bucket 1 + j its sums on column j: of x_j squared
# (pulls), of the residual of the reward times x_j (reward_sum) and of x_j (reward_squares). Columns that occurred in no
# context are not stored. Slots that were shown with features of arms stated by a request or an imported line have their
# counts in the row of their arm, and their moments in buckets from 2^40 on (`beliefs.SECTION`).
belief = _beliefs("belief")
belief_delta = _beliefs("belief_delta", *_columns(BIG, "seq"), *_sums("d_"), key=["seq"])

# Sums of slots that are in a belief and whose rows were pruned, faded until `ordinal`: without them, no audit could
# tell what the belief should be.
pruned_sums = _beliefs("pruned_sums")

# Weights of arms of a trained version, packed doubles; for a version with sparse contexts that was fitted to a log, the
# columns (four bytes each) and then the weights, from which its sums are residuals. They never change.
arm_weights = _table(
    "arm_weights", *_ids("version_id", "arm_id"), *_columns(BYTES, "weights"), key=["version_id", "arm_id"]
)
# The only process that may train a policy, and until when, by the database's clock (never by --now).
lease = _table(
    "lease", *_ids("policy_id"), *_columns(TEXT, "holder", "token"), *_columns(BIG, "taken_at", "expires_at"),
    key=["policy_id"],
)  # fmt: skip

# Users, by the key in requests. digest: 64 bits of the key (`contents.key_digest`). Clusters of estimates, their blocks
# and folds depend on it, never on the id: the same log in another order, or in another store, gives the same figures.
users = _table("users", *_columns(TEXT, "key"), *_columns(BIG, "digest?"))
# Users whose key leads to another user, the person, who has all their sessions. A person is not merged itself.
merged_user = _table("merged_user", *_ids("user_id", "person_id"), *_columns(BIG, "at"), key=["user_id"])
# Sessions, by the key in requests. `split` is drawn once, when the session is created: 0 train, 1 tune, 2 gate. digest:
# as in users.
session = _table(
    "session", *_columns(TEXT, "key"), *_ids("user_id?"), *_columns(SMALL, "split"),
    *_columns(BIG, "created_at", "digest?"),
)  # fmt: skip
# Visits of a session, from one timeout to the next. recent: arms in the state of its next decision, JSON. history: the
# last slots that the visit has shown, packed, after their number where it has shown more
# (`app/serving/open_sessions.py`); null if not stored. A visit that has ended keeps neither.
visit = _table(
    "visit", *_ids("session_id"), *_columns(BIG, "number", "started_at", "last_at", "steps"),
    *_columns(TEXT, "recent"), *_columns(BIG, "ended_at?"), *_columns(BYTES, "history?"), key=["session_id", "number"],
)  # fmt: skip

# Experiments assign users or sessions (`unit`) by a digest with their own salt; definition: the options of the command
# that created it. layer: running experiments of one layer share no units; parts: intervals of the layer's hash whose
# units this experiment may take, JSON.
experiment = _table(
    "experiment", *_columns(TEXT, "name", "unit", "salt", "status", "definition"),
    *_columns(BIG, "created_at", "stopped_at?"), *_columns(TEXT, "layer?", "parts?"),
)  # fmt: skip
# The variants of an experiment, each with its own policy and a share of the units.
variant = _table(
    "variant", *_ids("experiment_id"), *_columns(TEXT, "label"), *_ids("policy_id"), *_columns(REAL, "weight")
)
# A phase of an experiment: from then on units are assigned by its weights (JSON, by label). The first phase has the
# weights of the variants, and no row. mode: assign new units; also move others to a later variant; or take no units.
phase = _table("phase", *_ids("experiment_id"), *_columns(BIG, "at"), *_columns(TEXT, "mode", "weights"))
# The variant of each unit, a user or a session depending on the experiment; it stays, or moves with a phase of a ramp.
assignment = _table("assignment", *_ids("experiment_id", "user_id?", "session_id?", "variant_id"), *_columns(BIG, "at"))

# A name that callers use in place of a policy; routes and policies share one namespace. holdout: the experiment that
# permanently sets some of its users apart.
route = _table("route", *_columns(TEXT, "name"), *_columns(BIG, "created_at"), *_ids("holdout_id?"))
# Every look of a route's gate at a candidate, passed or not; report: its figures, JSON.
gate_look = _table(
    "gate_look", *_ids("route_id"), *_columns(BIG, "at"), *_ids("policy_id", "version_id"), *_columns(TEXT, "report")
)
# What a route serves, change by change; append-only, the newest one is valid. Without a version it is the policy's live
# one; experiment: the ramp that serves instead while it runs. command: as typed; look: of the gate that let the change
# pass; restored: the change to which a rollback returned.
route_change = _table(
    "route_change", *_ids("route_id"), *_columns(BIG, "at"), *_ids("policy_id", "version_id?", "experiment_id?"),
    *_columns(TEXT, "command"), *_ids("look_id?", "restored_id?"),
)  # fmt: skip
# A challenger that is compared with what a route serves, without serving itself, from one time to another.
shadow = _table("shadow", *_ids("route_id", "policy_id", "version_id?"), *_columns(BIG, "started_at", "stopped_at?"))

# A logged slate, with everything needed to score another policy on it. Fewer slots than `size` are a partial page of an
# imported log. `log_fields` describes the columns.
decision = _table("decision", *_fields(DECISION[1:]))
# The last decision of every user, which an event `return` credits when the user comes back. It is written while some
# reward weighs that event.
last_decision = _table("last_decision", *_ids("user_id", "decision_id"), key=["user_id"])
# The arms of a decision by position.
slot = _table("slot", *_fields(SLOT), key=["decision_id", "position"])

# Decisions that every reader leaves out: those that pass the filter, if by_unit only in sessions of the units. The
# filter contains no keys of users, so that none remain when users are forgotten.
exclusion = _table(
    "exclusion", *_columns(TEXT, "name", "filter"), *_columns(SMALL, "by_unit"), *_columns(BIG, "created_at")
)
exclusion_unit = _table("exclusion_unit", *_ids("exclusion_id", "user_id?", "session_id?"))
# The decisions that a belief left out when they would have entered it, whatever is excluded now.
omission = _table("omission", *_ids("decision_id", "version_id"), key=["decision_id", "version_id"])

# The route through which a decision was requested.
route_decision = _decision_table("route_decision", *_ids("route_id"))
# The log of the probability that a challenger would have given to a decision's slate; null if it has none.
shadow_decision = _table(
    "shadow_decision", *_ids("shadow_id", "decision_id"), *_columns(REAL, "log_probability?"),
    key=["shadow_id", "decision_id"],
)  # fmt: skip

# The ranker that picked each slot of an interleaved slate: a letter per position, A for the first and B for the second.
# The propensities of slots are conditional on these.
team_draft = _decision_table("team_draft", *_columns(TEXT, "teams"))

event = _table(
    "event", *_fields(EVENT),
    sa.ForeignKeyConstraint(["decision_id", "position"], ["slot.decision_id", "slot.position"]),
    key=["decision_id", "number"],
)  # fmt: skip
# A feedback key identifies a whole line, whose content is digested; `at`: null if the line had no time.
feedback_key = _table(
    "feedback_key", *_columns(TEXT, "key"), *_columns(BYTES, "digest"), *_columns(BIG, "at?"), *_ids("decision_id"),
    key=["key"],
)  # fmt: skip

# The lines that were imported into a policy, by the digest of their bytes and of the number of equal lines before them
# in the file.
import_line = _table(
    "import_line", *_ids("policy_id"), *_columns(BYTES, "digest"), *_ids("decision_id"), key=["policy_id", "digest"]
)

# The candidates that the first stage of a decision drew from a catalogue (null if unknown), ids in order, with their
# propensities, each given those before. The eligible set of the decision is the set of its candidates.
candidate_list = _decision_table(
    "candidate_list", *_ids("catalogue_id?"), *_columns(TEXT, "arms", "propensities"), *_columns(REAL, "log_propensity")
)

# Optional statements of an imported line besides its slate. Features of arms for that decision alone, in place of the
# catalogue's: {arm key: features}, in a context.
decision_features = _decision_table("decision_features", *_ids("context_id"))
# The arms that each position could show, if these differ: JSON, a list of ids for each position.
slot_set = _decision_table("slot_set", *_columns(TEXT, "arms"))
# The probability of each eligible arm at the first position, packed doubles in order of ids.
logged_support = _decision_table("logged_support", *_columns(BYTES, "probabilities"))

# Curves of examination: the probability that a position is examined, relative to the first one. Numbered under a name;
# they never change. options: of the command; positions: the curve, JSON; report: how it was estimated, JSON.
position_curve = _table(
    "position_curve", *_columns(TEXT, "name", "model", "method", "options", "positions", "report"),
    *_columns(BIG, "number", "created_at"), *_ids("reward_id"),
)  # fmt: skip

# Views for people who write SQL; a migration defines them.
VIEWS = ("v_decision", "v_slot", "v_version")


def time_columns() -> list[Column[Any]]:
    """Return all columns of the store that hold the time of a row. Two columns are left out: the end of a lease, which
    is in the future, and the time of a line of feedback, which stays as it was given."""
    tables = (table for table in metadata.sorted_tables if table not in (lease, feedback_key))
    return [column for table in tables for column in table.columns if re.fullmatch("at|.*_at", column.name)]
