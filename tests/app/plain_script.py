"""Counts and estimates of `uniform` by a script that knows the formats alone: the standard library, line by line.

Sources: DSJSON, Conditional Contextual Bandit and Slates in Vowpal Wabbit's wiki; its `parse_example_json.cc` (`pdrop`,
`_skipLearn`); `log_converter.cc` and `joined_event.h` of its reinforcement_learning (joined logs of Personalizer)."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Page:
    """A decision. slots: how many arms each could show, the probability of the one shown, its reward; reward: of the
    page beside these; independent: no slot looked at those above it, as in slates."""

    slots: list[tuple[int, float, float]]
    reward: float = 0.0
    keep: float = 1.0
    independent: bool = False


@dataclass
class Log:
    pages: list[Page] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    refused: list[tuple[str, int]] = field(default_factory=list)  # file and line


def estimates(pages: Iterable[Page]) -> dict[str, float]:
    """What the estimators of `uniform` come to, by their definitions."""
    sums = defaultdict[str, float](float)
    for page in pages:
        prefix, joint, excess, count = 1.0, 1.0, 0.0, 1 / page.keep
        for arms, p, reward in page.slots:
            ratio = 1 / arms / p
            prefix = ratio if page.independent else prefix * ratio
            joint, excess = joint * ratio, excess + ratio - 1
            sums["slots"] += count
            sums["weights"] += count * prefix
            sums["ips"] += count * prefix * reward
        total = count * (page.reward + sum(reward for *_, reward in page.slots))
        sums["pages"] += count
        sums["joints"] += count * joint
        sums["sips"] += joint * total
        sums["pi"] += (1 + excess) * total
    ratios = {
        "ips": ("ips", "slots"), "snips": ("ips", "weights"), "sips": ("sips", "pages"), "sn-sips": ("sips", "joints"),
        "pi": ("pi", "pages"),
    }  # fmt: skip
    return {name: sums[above] / sums[below] for name, (above, below) in ratios.items()}


def read_dsjson(files: Mapping[str, str], *, clip: bool = True) -> Log:
    """The log in the lines of files, by their names. clip: rewards of slots, to 0 to 1."""
    log, first = Log(), dict[str, str]()
    decisions, late, activated = list[tuple[dict[str, Any], Page]](), defaultdict[str, float](float), set[str]()
    for name, text in files.items():
        for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
            try:
                record = json.loads(line) if line.startswith("{") else {"_skipLearn": True}
                event_id = record.get("EventId")
                if record.get("_skipLearn") or record.get("pdrop") == 1:
                    log.counts["skipped"] += 1
                elif "RewardValue" in record or "ActionTaken" in record:
                    late[event_id] += record.get("RewardValue", 0.0)
                    activated |= {event_id} if record.get("ActionTaken") else set()
                elif event_id is not None and first.get(event_id) == line:
                    log.counts["duplicates"] += 1
                else:
                    assert event_id is None or event_id not in first
                    decisions.append((record, _page(record)))
                    first[event_id] = line
            except (ValueError, KeyError, AssertionError):
                log.refused.append((name, number))
    for record, page in decisions:
        if record.get("DeferredAction") and record["EventId"] not in activated:
            log.counts["skipped"] += 1
            continue
        if record.get("EventId") in late:
            ((arms, p, reward),) = page.slots
            page.slots = [(arms, p, reward + late.pop(record["EventId"]))]
        log.counts["clipped"] += any(not 0 <= reward <= 1 for *_, reward in page.slots)
        if clip:
            page.slots = [(arms, p, min(1.0, max(0.0, reward))) for arms, p, reward in page.slots]
        log.pages.append(page)
    log.counts.update(accepted=len(log.pages), rejected=len(log.refused), dangling=len(late))
    return log


def _page(record: Mapping[str, Any]) -> Page:
    actions, keep, shown = record["c"]["_multi"], 1 - record.get("pdrop", 0), set[int]()
    assert actions
    if "_outcomes" not in record:
        number = record["_label_Action"]
        p = record["p"][record["a"].index(number - 1 if 0 in record["a"] else number)]
        assert record["a"][0] == number or 0 in record["a"]
        _check(sorted(record["p"], key=lambda other: other != p))
        return Page([(len(actions), p, -record["_label_cost"])], keep=keep)
    page = Page([], keep=keep, independent="_slot_id" in actions[0])
    for slot, outcome in enumerate(record["_outcomes"]):
        if page.independent:
            eligible = {number for number, action in enumerate(actions) if action["_slot_id"] == slot}
        else:
            eligible = set(record["c"]["_slots"][slot].get("_inc", range(len(actions)))) - shown
            assert set(outcome["_a"]) == eligible
        shown.add(outcome["_a"][0])
        _check(outcome["_p"])
        page.slots.append((len(eligible), outcome["_p"][0], -outcome.get("_label_cost", 0)))
    page.reward = -record["_label_cost"] if page.independent else 0.0
    return page


def _check(p: list[float]) -> None:
    assert p[0] > 0
    assert all(0 <= each <= 1 for each in p)
    assert abs(sum(p) - 1) < 1e-4


def read_table(rows: Iterable[Mapping[str, str]]) -> list[Page]:
    """The pages of a table with a row a slot: of page, item, p, keep, clicked and items (between |)."""
    pages = defaultdict[str, Page](lambda: Page([]))
    for row in rows:
        page = pages[row["page"]]
        page.keep = float(row["keep"] or 1)
        page.slots.append((len(row["items"].split("|")) - len(page.slots), float(row["p"]), float(row["clicked"])))
    return list(pages.values())
