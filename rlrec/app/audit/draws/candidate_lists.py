"""Lists of candidates, derived and drawn again from the belief that each decision names."""

from __future__ import annotations

import numpy as np

from rlrec.app.audit.draws.stored_slates import CHECK, DRAWS, Referred, StoredSlates, agree
from rlrec.app.audit.integrity.findings import UNREADABLE, Findings
from rlrec.app.distributions.exact import EligibleDistribution, VersionDistribution
from rlrec.arrays import Ids, Index, Words
from rlrec.policy.slates.slate_draws import SMALLEST
from rlrec.store import Unit
from rlrec.store.log import candidates
from rlrec.store.log.candidates import CandidateList


def check(
    unit: Unit, slates: StoredSlates, rows: Index, served: VersionDistribution, *, referred: Referred,
    findings: Findings,
) -> None:  # fmt: skip
    """Add a finding for every list of these decisions that differs from what their belief gives."""
    ids = slates.per_decision("decision_id")[rows]
    lists, groups = candidates.find_lists(unit, ids.tolist()), dict[tuple[int, int, str], list[int]]()
    names = ("eligible_id", "catalogue_revision", "context_id")
    columns = (slates.per_decision(name)[rows].tolist() for name in names)
    for row, decision, eligible, revision, context in zip(rows.tolist(), ids.tolist(), *columns, strict=True):
        candidate_list, arms = lists.get(decision), referred.eligible(eligible)
        if candidate_list is None or candidate_list.catalogue_id is None:
            findings.error(CHECK, f"decision {decision}", "its list of candidates is not stored")
        elif arms is not None and sorted(candidate_list.arms) != arms[0].tolist():
            findings.error(CHECK, f"decision {decision}", "its candidates are not its eligible arms")
        else:
            name = candidate_list.catalogue_id, revision, served.reading(referred.context(context))
            groups.setdefault(name, []).append(row)
    for (catalogue, revision, _), group in groups.items():
        arms, context = referred.eligible(catalogue), referred.context(int(slates.per_decision("context_id")[group[0]]))
        if arms is None:
            continue
        members, seeds = (slates.per_decision(name)[group] for name in ("decision_id", "seed"))
        try:
            with np.errstate(all="ignore"):
                case = served.candidates(catalogue, arms[0], context, keys=arms[1], revision=revision)
                _compare(case, [lists[key] for key in members.tolist()], seeds.view(np.uint64), members, findings)
        except UNREADABLE as error:
            findings.error(CHECK, f"decision {members[0]}", f"its candidates cannot be derived again: {error}")


def _compare(
    case: EligibleDistribution, lists: list[CandidateList], seeds: Words, decisions: Ids, findings: Findings
) -> None:
    """Compare lists whose distribution is the same with those drawn and derived again."""
    stored = np.array([candidate_list.arms for candidate_list in lists])
    draws = case.pages(stored.shape[1]).draw(seeds=seeds, decisions=decisions, lists=True)
    derived = case.list_conditionals(stored, seeds=seeds, decisions=decisions)
    for candidate_list, redrawn, conditionals in zip(lists, case.arms[draws.slates].tolist(), derived, strict=True):
        if candidate_list.arms != redrawn:
            findings.error(DRAWS, f"decision {candidate_list.decision_id}", "its seed draws another list of candidates")
        propensity, subject = np.array(candidate_list.propensities), f"decision {candidate_list.decision_id}"
        expected = np.maximum(conditionals, SMALLEST)
        for row in np.flatnonzero(~agree(propensity, expected)).tolist():
            detail = f"candidate {row + 1} has propensity {propensity[row]:.12g}, not {expected[row]:.12g}"
            findings.error(CHECK, subject, detail)
        joint = np.log(expected).sum()
        if not np.isclose(candidate_list.log_propensity, joint, rtol=1e-6, atol=1e-9):
            detail = f"the log propensity of its candidates is {candidate_list.log_propensity:.12g}, not {joint:.12g}"
            findings.error(CHECK, subject, detail)
