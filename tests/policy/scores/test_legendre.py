"""Legendre polynomials: the same as numpy's, which the package does not load."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from numpy.polynomial import legendre as numpys

from rlrec.policy.scores.legendre import evaluate, gauss, polynomials


@pytest.mark.parametrize("n", [4, 16])
def test_nodes_and_weights_are_those_of_gauss(n: int) -> None:
    nodes, weights = gauss(n)
    expected = numpys.leggauss(n)
    assert nodes == pytest.approx(expected[0], abs=1e-16, rel=0)
    assert weights == pytest.approx(expected[1], abs=1e-15, rel=0)


def test_polynomials_are_numpys() -> None:
    x = np.linspace(-1, 1, 50)
    assert polynomials(x, 16) == pytest.approx(numpys.legvander(x, 16), abs=1e-15)


@pytest.mark.parametrize("terms", [2, 3, 16, 17])
def test_a_series_has_its_value_at_a_point_of_its_own(terms: int) -> None:
    rng = np.random.default_rng(terms)
    x, series = rng.uniform(-1, 1, 100), rng.normal(size=(terms, 100))
    assert evaluate(x, series) == pytest.approx(numpys.legval(x, series, tensor=False), abs=1e-13)


@pytest.mark.slow
def test_scores_do_not_load_numpys_polynomials() -> None:
    code = "import sys, rlrec.policy.scores.families.beta; sys.exit('numpy.polynomial' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
