"""Lists of candidates, derived and drawn again from the belief that each decision names."""

from __future__ import annotations

import numpy as np

from rlrec.app.audit.draws.stored_slates import CHECK, DRAWS, Referred, StoredSlates, near
from rlrec.app.audit.integrity.findings import UNREADABLE, Findings
from rlrec.app.distributions.exact import EligibleDistribution, VersionDistribution
from rlrec.arrays import Array, Ids, Index, Words
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
        listed, arms = lists.get(decision), referred.eligible(eligible)
        if listed is None or listed.catalogue_id is None:
            findings.error(CHECK, f"decision {decision}", "its list of candidates is not stored")
        elif arms is not None and sorted(listed.arms) != arms[0].tolist():
            findings.error(CHECK, f"decision {decision}", "its candidates are not its eligible arms")
        else:
            name = listed.catalogue_id, revision, served.reading(referred.context(context))
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
    stored = np.array([listed.arms for listed in lists])
    drawn = case.pages(stored.shape[1]).draw(seeds=seeds, decisions=decisions, lists=True)
    derived = case.list_conditionals(stored, seeds=seeds, decisions=decisions)
    for listed, again, chances in zip(lists, case.arms[drawn.slates].tolist(), derived, strict=True):
        if listed.arms != again:
            findings.error(DRAWS, f"decision {listed.decision_id}", "its seed draws another list of candidates")
        _report(listed, np.maximum(chances, SMALLEST), findings)


def _report(listed: CandidateList, derived: Array, findings: Findings) -> None:
    subject, stored, joint = f"decision {listed.decision_id}", np.array(listed.propensities), np.log(derived).sum()
    for position in np.flatnonzero(~near(stored, derived)).tolist():
        detail = f"candidate {position + 1} has propensity {stored[position]:.12g}, not {derived[position]:.12g}"
        findings.error(CHECK, subject, detail)
    if not np.isclose(listed.log_propensity, joint, rtol=1e-6, atol=1e-9):
        detail = f"the log propensity of its candidates is {listed.log_propensity:.12g}, not {joint:.12g}"
        findings.error(CHECK, subject, detail)
