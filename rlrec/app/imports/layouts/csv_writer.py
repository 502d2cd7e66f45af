"""The log as a table in CSV, a row a slot: `import-log` takes it back without a map."""

from __future__ import annotations

import csv
import io
from typing import Any

from rlrec.app.imports.layouts.writing import LayoutWriter, Record
from rlrec.app.inputs import canonical
from rlrec.errors import InputError
from rlrec.log_fields import SLOT, STATED

OF_DECISION = (
    "decision", "request_id", "session", "visit", "step", "user", "at", "policy", "size", "log_propensity",
    *(field.key for field in STATED if field.in_csv), "eligible", "context", "state",
)  # fmt: skip
OF_SLOT = (*(field.key for field in SLOT if field.in_csv), "reward", "events")
COLUMNS = (*OF_DECISION, *OF_SLOT)
MAP = {name: name for name in COLUMNS if name != "reward"}  # which follows from events


class CsvWriter(LayoutWriter):
    """`eligible` is a list in JSON, `context` an object, `events` a list of those of the slot; events of the page are
    on its first row, with `"position": null`."""

    header = f"{','.join(COLUMNS)}\n".encode()

    def decision(self, record: Record) -> bytes:
        last = record["slate"][-1]["position"]
        first = [
            record["decision_id"], record["request_id"], record["session"], record["visit"], record["step"],
            record["user"], record["at"], record["policy"], record.get("k", last), record["log_propensity"],
            *(1 if record.get(field.key) is True else record.get(field.key) for field in STATED if field.in_csv),
            canonical.text(record["eligible"]), canonical.text(record["context"]),
            canonical.text(record["state"]) if record["state"] else None,
        ]  # fmt: skip
        events: dict[int | None, list[Any]] = {}
        for event in record["events"]:
            events.setdefault(event["position"], []).append({name: event[name] for name in ("kind", "value", "at")})
            if event["key"] is not None:
                events[event["position"]][-1]["key"] = event["key"]
        of_page = [event | {"position": None} for event in events.get(None, ())]
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        for slot in record["slate"]:
            of_slot = events.get(slot["position"], []) + of_page
            self.left_out.update(name for name in ("censored", "rounded", "team") if slot.get(name))
            rows.writerow([
                *first, *(slot.get(name) for name in OF_SLOT[:-2]), record["rewards"][slot["position"]],
                canonical.text(of_slot) if of_slot else None,
            ])  # fmt: skip
            of_page = []
        written = text.getvalue()
        if written.count("\n") > len(record["slate"]) or "\r" in written:
            reason = f"a key of decision {record['decision_id']} has a line break, which no cell can hold"
            raise InputError(reason, hint="--layout jsonl")
        return written.encode()
