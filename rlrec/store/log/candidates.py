"""Queries here store and read the candidates that the first stages of policies drew, and the teams of slates that two
rankers filled in turn. Each decision has at most one list of candidates and one row of teams, which never change."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from rlrec.store.database.unit import Row, Unit, damage_error, parse


class CandidateList(NamedTuple):
    """This record is the list of candidates of one decision.

    catalogue_id: the id of the eligible set that the candidates were drawn from, or None if that set is not known;
    arms: the ids of the candidates, in the order in which they were drawn (as a set, they are the eligible set of
    the decision); propensities: the probability of each candidate, given the candidates before it; log_propensity:
    the logarithm of the probability of the list."""

    decision_id: int
    catalogue_id: int | None
    arms: list[int]
    propensities: list[float]
    log_propensity: float


COLUMNS = CandidateList._fields


def add(unit: Unit, rows: Iterable[Row]) -> None:
    """Store lists of candidates, given as rows of COLUMNS with arms and propensities as JSON."""
    unit.insert("candidate_list", COLUMNS, rows)


def find_lists(unit: Unit, decision_ids: Collection[int]) -> dict[int, CandidateList]:
    """Return the lists of candidates of these decisions, by decision id. Decisions without a list are left out."""
    rows = unit.ask(f"SELECT {', '.join(COLUMNS)} FROM candidate_list WHERE decision_id IN (?*)", decision_ids)
    return {row[0]: read_list(*row) for row in rows}


def read_list(
    decision_id: int, catalogue_id: int | None, arms: str, propensities: str, log_propensity: float
) -> CandidateList:
    """Return the list of candidates that a row of the table `candidate_list` holds. arms, propensities: as JSON."""
    source = f"of the candidates of decision {decision_id}"
    arm_ids, probabilities = parse(arms, f"arms {source}", list), parse(propensities, f"propensities {source}", list)
    if len(arm_ids) != len(probabilities):
        numbers = f"{len(arm_ids)} candidates with {len(probabilities)} propensities"
        raise damage_error(f"decision {decision_id} has {numbers}")
    return CandidateList(decision_id, catalogue_id, arm_ids, probabilities, log_propensity)


TEAMS = "AB"  # letters of the two rankers


def add_teams(unit: Unit, rows: Iterable[tuple[int, str]]) -> None:
    """Store the teams of decisions. Each row has a decision id and a text with one letter for each position, which
    names the ranker that filled the position."""
    unit.insert("team_draft", ("decision_id", "teams"), rows)


def find_teams(unit: Unit, decision_ids: Collection[int]) -> dict[int, str]:
    """Return the text of teams (as in `add_teams`) of each of these decisions, by decision id. Decisions without teams
    are left out."""
    return dict(unit.ask("SELECT decision_id, teams FROM team_draft WHERE decision_id IN (?*)", decision_ids))
