"""The cheap checks say of the newest decisions what `doctor` says of all."""

from __future__ import annotations

import pytest

from rlrec.app.audit.draws import newest
from rlrec.app.audit.integrity.findings import Finding
from rlrec.store import Store
from rlrec.store.policies import policies
from tests.cli.commands.judging.test_exposure import stocked


def check(store: Store, *, on_its_clock: bool = True) -> list[Finding]:
    with store.read() as unit:
        return newest.check(unit, policies.all_policies(unit), on_its_clock=on_its_clock)


def test_a_healthy_store_has_no_finding(db: str, store: Store) -> None:
    stocked(db)
    assert check(store) == []


@pytest.mark.parametrize(("on_its_clock", "checks"), [(True, ["clock"]), (False, [])])
def test_decisions_ahead_of_the_clock_are_an_error_where_nobody_set_it(
    db: str, store: Store, on_its_clock: bool, checks: list[str]
) -> None:
    stocked(db)
    store.write(lambda unit: unit.tell("UPDATE decision SET at = at + 100000000000000"))
    assert [finding.check for finding in check(store, on_its_clock=on_its_clock)] == checks
