"""Estimators by name."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields

import pytest

from rlrec import ope
from rlrec.errors import InputError

PARAMETERS = [name for name in ope.ESTIMATORS if fields(ope.estimator(name)) and name not in ope.NEED_CURVE]
IN_GROUPS = [name for name in ope.ESTIMATORS if name not in (*ope.CURVE_ESTIMATORS, ope.CRAM)]


def test_a_list_keeps_its_order_and_its_labels() -> None:
    choice = ope.parse("snips, clipped-ips:5,ips,snips")
    assert list(choice.labels) == list(choice.impressions) == ["snips", "clipped-ips:5", "ips"]
    assert getattr(choice.impressions["clipped-ips:5"], "clip", None) == 5


def test_groups_stand_for_their_members() -> None:
    others = [name for name in ope.GROUPS["impression"] if name != "dr"]
    assert list(ope.parse("dr,impression").labels) == ["dr", *others]
    assert sorted(ope.parse("all").labels) == sorted(IN_GROUPS)


def test_units_are_separate() -> None:
    choice = ope.parse("wdr,pbm:home,ips,tis")
    assert (choice.labels, [*choice.impressions], [*choice.sessions], [*choice.slates]) == (
        ("wdr", "pbm:home", "ips", "tis"),
        ["ips"],
        ["wdr", "tis"],
        ["pbm:home"],
    )
    assert tuple(ope.parse("session").sessions) == ope.GROUPS["session"]


def test_every_name_leads_to_the_class_of_that_name() -> None:
    assert [ope.estimator(name).name for name in ope.ESTIMATORS] == list(ope.ESTIMATORS)


def test_every_name_is_described_with_its_default() -> None:
    described = [line for lines in ope.descriptions().values() for line in lines]
    assert [re.split(r"\[|:", name)[0] for name, _ in described] == list(ope.ESTIMATORS)
    form = r"[a-z-]+(\[:[0-9.]+\])?(:CURVE)?"
    assert all(re.fullmatch(form, name) and text.endswith(".") for name, text in described)
    assert described[3][0] == "clipped-ips[:20]"


def test_a_near_miss_is_suggested() -> None:
    with pytest.raises(InputError, match="snip") as refused:
        ope.parse("snip")
    assert "snips" in str(refused.value.hint)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " , ",
        "ips:3",
        "sips:1",
        "clipped-ips:5:6",
        "pbm",
        "pbm:",
        "sn-pbm",
        "interpol:1:",
        "interpol:0.5",
        *(f"{name}:{value}" for name in PARAMETERS for value in ("", "x", "0", "-1", "nan", "inf")),
    ],
)
def test_a_wrong_list_or_parameter_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        ope.parse(text)


def test_naming_estimators_loads_no_numpy() -> None:
    code = "import sys, rlrec.ope; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
