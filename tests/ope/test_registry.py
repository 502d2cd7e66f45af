"""Estimators by name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rlrec import ope
from rlrec.errors import InputError


def test_a_list_keeps_its_order_and_its_labels() -> None:
    asked = ope.parse("snips, clipped-ips:5,ips,snips")
    assert list(asked.labels) == list(asked.impressions) == ["snips", "clipped-ips:5", "ips"]
    assert getattr(asked.impressions["clipped-ips:5"], "clip", None) == 5


def test_groups_stand_for_their_members() -> None:
    assert list(ope.parse("dr,impression").labels) == ["dr", "ips", "snips", "clipped-ips", "dm"]
    assert list(ope.parse("all").labels) == list(ope.ESTIMATORS)


def test_units_are_told_apart() -> None:
    asked = ope.parse("wdr,ips,tis")
    assert (asked.labels, [*asked.impressions], [*asked.sessions]) == (("wdr", "ips", "tis"), ["ips"], ["wdr", "tis"])
    assert list(ope.parse("session").sessions) == ["tis", "pdis", "wis", "wpdis", "dr-rl", "wdr"]


def test_every_name_leads_to_the_class_of_that_name() -> None:
    assert [ope.estimator(name).name for name in ope.ESTIMATORS] == list(ope.ESTIMATORS)


def test_a_near_miss_is_suggested() -> None:
    with pytest.raises(InputError, match="snip") as refused:
        ope.parse("snip")
    assert "snips" in str(refused.value.hint)


@pytest.mark.parametrize(
    "text", ["", " , ", "ips:3", "clipped-ips:", "clipped-ips:x", "clipped-ips:0", "clipped-ips:nan"]
)
def test_a_wrong_list_or_parameter_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        ope.parse(text)


def test_naming_estimators_loads_no_numpy() -> None:
    code = "import sys, rlrec.ope; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
