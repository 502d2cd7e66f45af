"""Lists of candidates, derived and drawn again from the belief that each decision names."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rlrec.app.audit.findings import UNREADABLE, Findings
from rlrec.app.audit.stored_slates import CHECK, DRAWS, Referred, StoredSlates, near
from rlrec.app.distributions import candidate_lists
from rlrec.app.distributions.exact import EligibleDistribution, VersionDistribution
from rlrec.arrays import Array, Ids, Index, Words
from rlrec.policy.slate import SMALLEST
from rlrec.store import Unit, candidates
from rlrec.store.candidates import CandidateList


class Drawn(NamedTuple):
    """Decisions of one belief whose lists share a distribution, (n,) each."""

    ids: Ids
    seeds: Words
    lists: list[CandidateList]


def check(
    unit: Unit,
    slates: StoredSlates,
    rows: Index,
    served: VersionDistribution,
    *,
    referred: Referred,
    findings: Findings,
) -> None:
    """Add a finding for every list of these decisions that differs from what their belief gives."""
    ids = slates.per_decision("decision_id")[rows]
    lists, groups = candidates.find(unit, ids.tolist()), dict[tuple[int, int, str], list[int]]()
    names = ("eligible_id", "catalogue_revision", "context_id")
    columns = (slates.per_decision(name)[rows].tolist() for name in names)
    for row, decision, eligible, revision, context in zip(rows.tolist(), ids.tolist(), *columns, strict=True):
        listed, arms = lists.get(decision), referred.eligible(eligible)
        if listed is None or listed.catalogue_id is None:
            findings.error(CHECK, f"decision {decision}", "its list of candidates is not stored")
        elif arms is not None and sorted(listed.arms) != arms[0].tolist():
            findings.error(CHECK, f"decision {decision}", "its candidates are not its eligible arms")
        else:
            name = listed.catalogue_id, revision, served.reading(referred.context(context))
            groups.setdefault(name, []).append(row)
    for (catalogue, revision, _), group in groups.items():
        first = slates.per_decision("context_id")[group[0]]
        arms = referred.eligible(catalogue)
        if arms is None:
            continue
        case = served.candidates(catalogue, arms[0], referred.context(int(first)), keys=arms[1], revision=revision)
        members = slates.per_decision("decision_id")[group]
        drawn = Drawn(
            members, slates.per_decision("seed")[group].view(np.uint64), [lists[key] for key in members.tolist()]
        )
        try:
            with np.errstate(all="ignore"):
                _compare(case, drawn, size=served.learner.listed, findings=findings)
        except UNREADABLE as error:
            findings.error(CHECK, f"decision {members[0]}", f"its candidates cannot be derived again: {error}")


def _compare(case: EligibleDistribution, drawn: Drawn, *, size: int, findings: Findings) -> None:
    again = case.pages(size).draw(seeds=drawn.seeds, decisions=drawn.ids, lists=True)
    for row, listed in enumerate(drawn.lists):
        subject = f"decision {listed.decision_id}"
        if listed.arms != case.arms[again.slates[row]].tolist():
            findings.error(DRAWS, subject, "its seed draws another list of candidates")
        alone, arms = slice(row, row + 1), np.array([listed.arms], np.int64)
        derived = candidate_lists.conditionals(case, arms, seeds=drawn.seeds[alone], decisions=drawn.ids[alone])[0]
        _report(listed, np.maximum(derived, SMALLEST), subject, findings)


def _report(listed: CandidateList, derived: Array, subject: str, findings: Findings) -> None:
    stored, joint = np.array(listed.propensities), float(np.log(derived).sum())
    for position in np.flatnonzero(~near(stored, derived)).tolist():
        detail = f"candidate {position + 1} has propensity {stored[position]:.12g}, not {derived[position]:.12g}"
        findings.error(CHECK, subject, detail)
    if not np.isclose(listed.log_propensity, joint, rtol=1e-6, atol=1e-9):
        detail = f"the log propensity of its candidates is {listed.log_propensity:.12g}, not {joint:.12g}"
        findings.error(CHECK, subject, detail)
