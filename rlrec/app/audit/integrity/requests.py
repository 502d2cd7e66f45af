"""Digests of requests: each decision must fit the request that it answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import Any

from rlrec.app.audit.integrity.findings import Findings
from rlrec.app.inputs import canonical
from rlrec.app.serving.assignment import fallback
from rlrec.app.serving.requests import arms_text, digest_of_texts
from rlrec.arrays import Ids
from rlrec.policy.beliefs.base import PRICE
from rlrec.policy.contexts.statements import GROUPS, LOGGED_RULES
from rlrec.store import Unit
from rlrec.store.database.unit import parse
from rlrec.store.log import contents, settings
from rlrec.store.policies import arms, experiments, users
from rlrec.store.upkeep import audit

CHECK = "requests"
PORTION = 5_000  # decisions at a time


def check(unit: Unit, decision_ids: Ids, *, findings: Findings) -> None:
    """Compare the stored digests with those of every form that the request may have had: with or without its user, by
    any of the user's keys, with or without its arms, and by the name of the route, the policy or the version."""
    stated = lru_cache(PORTION)(_stated)
    no_arms, has_merges = arms_text(None), settings.get(unit).has_merges
    fallbacks = [(fallback(row), row.name) for row in experiments.all_experiments(unit) if row.variants]
    for start in range(0, len(decision_ids), PORTION):
        unit.progress("requests", start, start / len(decision_ids))
        rows = audit.answered_requests(unit, decision_ids[start : start + PORTION].tolist())
        sets = contents.eligible_arms(unit, {row[6] for row in rows})
        keys = arms.keys(unit, {arm for members in sets.values() for arm in members})
        merged_keys = users.all_keys(unit, {row[4] for row in rows} - {None}) if has_merges else {}
        set_texts = {set_id: arms_text([keys[arm] for arm in members]) for set_id, members in sets.items()}
        for decision_id, digest, size, session, user, text, set_id, *policy_names in rows:
            with findings.unreadable(CHECK, f"decision {decision_id}"):
                keys_of_user = dict.fromkeys((user, None, *merged_keys.get(user, ())))
                context, words, stated_arms = stated(text)
                forms_of_arms = (no_arms, set_texts[set_id]) if stated_arms is None else (stated_arms,)
                forms = product(_names(fallbacks, *policy_names), keys_of_user, forms_of_arms)
                if not any(
                    digest_of_texts((*names, session, form_user), context, size, form_arms, words) == digest
                    for names, form_user, form_arms in forms
                ):
                    detail = "its session, user, context, length or arms are not those of its request"
                    findings.decision_error(CHECK, decision_id, detail)


def _stated(text: str) -> tuple[str, dict[str, Any], str | None]:
    """The context of a request as it came, derived from the logged one; its rules on arms; and the text of the arms
    that it listed, None where the log does not have them."""
    context = parse(text, "its context")
    words = context.pop(LOGGED_RULES, {})
    for name in (PRICE, GROUPS):  # added by rlrec, not by the request
        context.pop(name, None)
    listed_arms = words.pop("arms", None)
    return canonical.text(context), words, None if listed_arms is None else arms_text(listed_arms)


def _names(
    fallbacks: Sequence[tuple[str, str]], policy: str, version: int, experiment: str | None, route: str | None
) -> list[tuple[str | None, str | None]]:
    """The names of a policy or route, and of an experiment, that a request may have had; most have the policy's.
    fallbacks: for each experiment, what is served to those that it does not take, and its name."""
    if route is not None:
        return [(route, None)]
    references = (policy, f"{policy}@{version}")
    others = [(None, name) for fallback, name in fallbacks if fallback in references]
    return [*((reference, None) for reference in references), *others] if experiment is None else [(None, experiment)]
