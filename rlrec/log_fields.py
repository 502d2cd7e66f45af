"""This module lists the fields of the log: the fields of decisions, slots and events. The tables of the store, the
columns of arrays, the lines of exports and manual pages are derived from these lists."""

from __future__ import annotations

from math import nan
from typing import NamedTuple


class FieldCheck(NamedTuple):
    """A FieldCheck is a test of the values of a field, which the database makes as a constraint. test: an SQL
    condition, with {0} in place of the column; word: the end of the constraint's name."""

    word: str
    test: str


FINITE = FieldCheck("finite", "{0} BETWEEN -1e308 AND 1e308")  # excludes NaN (NULL on SQLite) and the infinities
FLAG = FieldCheck("flag", "{0} IN (0, 1)")
KEY = FieldCheck("length", "length({0}) BETWEEN 1 AND 200")
KIND = FieldCheck("length", "length({0}) BETWEEN 1 AND 64")
COUNT = FieldCheck("positive", "{0} >= 0")
ORDINAL = FieldCheck("positive", "{0} > 0")
PROBABILITY = FieldCheck("probability", "{0} > 0 AND {0} <= 1")
SHARE = FieldCheck("range", "{0} >= 0 AND {0} <= 1")
LOG_PROBABILITY = FieldCheck("range", "{0} <= 0 AND {0} >= -1e308")

ABSENT = -1  # stands for a missing id
NO_SCORE = 1e308  # stands for a missing score


class LogField(NamedTuple):
    """This record describes a field of the log.

    name: the name of the column; kind: the type of the values (a bool is stored as 0 or 1); meaning: a description
    for readers; table: the table whose id the field holds, if any; optional: whether the field may be null; check: a
    test of the values; key: the key of the field in a line of JSON; in_csv: whether a row of CSV has the field;
    is_read: whether the field is read as an array; absent: the value that stands for null in this array; is_stated:
    whether the field comes only from lines of imported logs, and is passed on unchanged."""

    name: str
    kind: type[bool | int | float | str | bytes]
    meaning: str
    table: str | None = None
    optional: bool = False
    check: FieldCheck | None = None
    key: str = ""
    in_csv: bool = False
    absent: float | bytes | None = None
    is_read: bool = True
    is_stated: bool = False


DECISION = (
    LogField("id", int, "its number", key="decision_id", in_csv=True),
    LogField("policy_id", int, "its policy; JSON has the name", "policy", key="policy", in_csv=True),
    LogField("version_id", int, "its version; JSON has the number", "version", key="version"),
    LogField("belief_seq", int, "the last change that the belief held when it was read", key="belief_seq"),
    LogField("belief_ordinal", int, "the counter of a policy that forgets, at that time", optional=True, absent=0),
    LogField("seq", int, "the change of the policy by which it was stored", is_read=False),
    LogField("ordinal", int, "its number within a policy that forgets", optional=True, absent=0),
    LogField("session_id", int, "the session; JSON has its key", "session", key="session", in_csv=True),
    LogField("visit", int, "the visit of the session, from 1", key="visit", in_csv=True),
    LogField("step", int, "how many decisions of the visit came before", check=COUNT, key="step", in_csv=True),
    LogField("context_id", int, "the context; JSON has the object itself", "context", key="context", in_csv=True),
    LogField("state", str, "what the visit had shown before, JSON", key="state", in_csv=True, is_read=False),
    LogField("eligible_id", int, "the arms to draw from; JSON has keys", "eligible_set", key="eligible", in_csv=True),
    LogField("catalogue_revision", int, "the revision of the catalogue"),
    LogField("size", int, "the length of the page; JSON: if slots are missing", check=ORDINAL, key="k", in_csv=True),
    LogField("log_propensity", float, "the log of the probability of the slate",
             optional=True, check=LOG_PROBABILITY, key="log_propensity", in_csv=True, absent=nan),
    LogField("seed", int, "the seed that it was drawn with", optional=True, key="seed", absent=0),
    LogField("variant_id", int, "the variant; JSON has the label", "variant", True, key="variant", absent=ABSENT),
    LogField("at", int, "when it was made", key="at", in_csv=True),
    LogField("imported", bool, "whether it was imported", check=FLAG),
    LogField("request_key", str, "the id of its request",
             optional=True, check=KEY, key="request_id", in_csv=True, is_read=False),
    LogField("request_digest", bytes, "the digest of the content of its request", optional=True, is_read=False),
    LogField("run_id", int, "the import that stored it", "run", True, is_read=False),
    LogField("source", str, "what an imported line called its policy and belief, JSON", optional=True, is_read=False),
    LogField("history", bytes, "the visit as it saw it, packed; null where not stored", optional=True, absent=b""),
    LogField(
        "keep_probability", float, "how likely the log that it comes from kept it; null: it keeps all",
        optional=True, check=PROBABILITY, key="keep_probability", in_csv=True, absent=1.0, is_stated=True,
    ),
    LogField("estimated", bool, "whether its propensities were computed when it was imported",
             optional=True, check=FLAG, key="estimated", in_csv=True, absent=0, is_stated=True),
)  # fmt: skip
SLOT = (
    LogField("decision_id", int, "its decision", "decision"),
    LogField("position", int, "the position on the page, from 1", check=ORDINAL, key="position", in_csv=True),
    LogField("arm_id", int, "the arm; JSON has its key", "arm", key="arm", in_csv=True),
    LogField("propensity", float, "the probability of the arm, given the positions above",
             optional=True, check=PROBABILITY, key="propensity", in_csv=True, absent=nan),
    LogField("marginal", float, "the probability of the arm at that position",
             optional=True, check=PROBABILITY, key="marginal", in_csv=True, absent=nan),
    LogField("min_propensity", float, "the smallest propensity of any arm still left there",
             optional=True, check=SHARE, key="min_propensity", in_csv=True, absent=nan),
    LogField("score", float, "the score that the policy gave",
             optional=True, check=FINITE, key="score", in_csv=True, absent=NO_SCORE),
    LogField("censored", bool, "whether the last event that says so takes it out",
             check=FLAG, key="censored", in_csv=True),
    LogField("rounded", bool, "whether a probability was below the least that is stored",
             check=FLAG, key="rounded", in_csv=True),
)  # fmt: skip
EVENT = (
    LogField("decision_id", int, "its decision", "decision"),
    LogField("number", int, "its number within the decision, under the lock of the policy"),
    LogField("position", int, "the position; null: of the page", optional=True, key="position", absent=0),
    LogField("kind", str, "its kind; `!censor` takes a slot out (value 1) or puts it back (0)", check=KIND, key="kind"),
    LogField("value", float, "its value", check=FINITE, key="value"),
    LogField("at", int, "when it happened", key="at", is_read=False),
    LogField("received_at", int, "when it was stored"),
    LogField("seq", int, "the change of the policy that stored it"),
    LogField("key", str, "the key of the line of feedback", optional=True, key="key", is_read=False),
)
STATED_FIELDS = tuple(field for field in DECISION if field.is_stated)
