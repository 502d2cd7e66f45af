"""This module collects the metrics of a server for Prometheus."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, generate_latest
from prometheus_client.core import GaugeMetricFamily

from rlrec.cli.doors.writer import SharedWriter
from rlrec.cli.program.shared import Store
from rlrec.errors import RlrecError
from rlrec.times import parse

STATE_CACHE_S = 5.0  # for which the state of the store is shown without reading it again
GROUP_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 20)
GROUP_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Metrics:
    """A Metrics object collects figures for Prometheus: counts of answered lines, and the state of the store."""

    def __init__(self, store: Store, writer: SharedWriter) -> None:
        """Register the metrics, and count each group of lines that the writer answers from now on.

        `store` is the store that the writer's thread uses. The metrics are read through a connection of their own."""
        self.url, self.now = store.url.render_as_string(hide_password=False), store.now
        self.pipe, self.registry, writer.count_group = writer.pipe, CollectorRegistry(), self.count_group
        common: dict[str, Any] = {"registry": self.registry, "namespace": "rlrec"}
        self.decisions = Counter(
            "decisions", "Decisions that were drawn and logged; route: that led to the policy, if one did.",
            ["policy", "version", "route"], **common,
        )  # fmt: skip
        self.events = Counter("events", "Events of feedback that were stored.", ["policy"], **common)
        self.reward = Gauge(
            "reward", "Reward of decisions that feedback added, less what it took away.", ["policy"], **common
        )
        self.feedback = Counter("feedback", "Lines of feedback that were stored.", **common)
        self.duplicates = Counter("duplicates", "Requests that were answered before.", **common)
        self.refusals = Counter("refused", "Lines that were refused, by exit code.", ["code"], **common)
        self.group_lines = Histogram(
            "group_lines", "Lines of a group, which is a transaction.", buckets=GROUP_SIZES, **common
        )
        self.group_seconds = Histogram("group_seconds", "Time to store a group.", buckets=GROUP_SECONDS, **common)
        self.surprise = Summary(
            "draw_surprise_nats", "Minus log propensity of a slate: its mean is the entropy of the policy.",
            ["policy", "version"], **common,
        )  # fmt: skip
        Gauge("waiting_bodies", "Bodies that wait for the writer.", **common).set_function(writer.n_waiting)
        Gauge("lag_seconds", "For how long the writer has been at its group.", **common).set_function(writer.busy_s)
        self._state: list[GaugeMetricFamily] = []
        self._read_at = -STATE_CACHE_S
        self.registry.register(self)

    def count_group(self, answers: Sequence[Any], seconds: float) -> None:
        """Count the answers to a group of lines.

        `seconds` is the time that the writer needed for the group."""
        from rlrec.app.serving.requests import DrawnAnswer

        self.group_lines.observe(len(answers))
        self.group_seconds.observe(seconds)
        for policy, (n_events, reward) in self.pipe.transaction.policy_sums().items() if self.pipe.transaction else ():
            self.events.labels(policy).inc(n_events)
            self.reward.labels(policy).inc(reward)
        for answer in answers:
            if isinstance(answer, DrawnAnswer):
                answer = answer.fields
            if not isinstance(answer, dict):
                self.feedback.inc()
            elif "error" in answer:
                self.refusals.labels(str(answer["code"])).inc()
            elif answer["duplicate"]:
                self.duplicates.inc()
            else:
                labels = answer["policy"], str(answer["version"])
                self.decisions.labels(*labels, answer["route"] or "").inc()
                self.surprise.labels(*labels).observe(-answer["log_propensity"])

    def collect(self) -> list[GaugeMetricFamily]:
        """Return the metrics of the store, as they were last read."""
        return self._state

    async def text(self) -> bytes:
        """Return all metrics in the text format of Prometheus. The state of the store is read again if it is older than
        STATE_CACHE_S seconds."""
        if time.monotonic() - self._read_at >= STATE_CACHE_S:
            self._read_at = time.monotonic()  # meanwhile others get the state read before
            self._state = await asyncio.to_thread(self._read)
        return generate_latest(self.registry)

    def _read(self) -> list[GaugeMetricFamily]:
        """Return figures of the store: the live version and the budget of each policy, the numbers of waiting slots and
        decisions, and the number of errors that the last `doctor` found."""
        from rlrec.app.judging.status import status
        from rlrec.app.opening import open_store

        try:
            with open_store(self.url, now=self.now, notice=lambda _: None) as store:
                state = status(store)
        except RlrecError:
            return [_store_up_gauge(0)]
        live_gauge = GaugeMetricFamily("rlrec_live_version", "Number of the live version.", labels=["policy"])
        labels = ["policy", "event", "period"]
        spent_gauge = GaugeMetricFamily("rlrec_budget_spent", "Spent of a budget in its present period.", labels=labels)
        amount_gauge = GaugeMetricFamily("rlrec_budget_amount", "The budget of a period.", labels=labels)
        for policy in state["policies"]:
            live_gauge.add_metric([policy["policy"]], policy["live"])
            if (budget := policy["budget"]) is not None:
                names = [policy["policy"], budget["event"], budget["period"]]
                spent_gauge.add_metric(names, budget["spent"])
                amount_gauge.add_metric(names, budget["amount"])
        figures = [_store_up_gauge(1), live_gauge, *([spent_gauge, amount_gauge] if spent_gauge.samples else [])]
        for name, text, value in (
            ("unsettled_slots", "Slots that have not entered the beliefs.", state["waiting"]["unsettled"]),
            ("immature_decisions", "Decisions whose reward window is open.", state["waiting"]["immature"]),
            ("warnings", "Findings of `rlrec status`.", len(state["warnings"])),
        ):
            figures.append(GaugeMetricFamily(f"rlrec_{name}", text, value=value))
        if (doctor := state["doctor"]) is not None:
            errors, at = doctor["errors"], parse(doctor["at"]) / 1e6
            figures.append(GaugeMetricFamily("rlrec_doctor_errors", "Errors of the last `doctor`.", value=errors))
            figures.append(GaugeMetricFamily("rlrec_doctor_timestamp_seconds", "When it ran.", value=at))
        return figures


def _store_up_gauge(value: int) -> GaugeMetricFamily:
    return GaugeMetricFamily("rlrec_store_up", "Whether the store could be read: 1, or 0.", value=value)
