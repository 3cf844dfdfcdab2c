"""Faults end in one line, and lose, change and execute nothing; `campaign` defines them."""

from __future__ import annotations

import pytest

from tests.faults.campaign import KINDS, campaign

SPARSE = {"wrong command lines": 20, "damaged weights": 5}
"""Every n-th case in the default suite, where it is not 50: to stay within a minute."""


@pytest.mark.parametrize("kind", KINDS)
def test_some_faults_end_well(kind):
    wrong = campaign(kind, SPARSE.get(kind, 50))
    assert [(case.name, fault) for case, fault in wrong if fault] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_all_faults_end_well(kind):
    assert [(case.name, fault) for case, fault in campaign(kind) if fault] == []
