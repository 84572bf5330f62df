from itertools import pairwise

import pytest

from ccnet_cli.training.schedule import learning_rate

STEPS = 37


def test_it_is_the_poly_rule():
    for step in range(STEPS):
        assert learning_rate(step, STEPS, 1e-2) == pytest.approx(1e-2 * ((STEPS - step) / STEPS) ** 0.9, rel=1e-12)


@pytest.mark.parametrize("power", [0.5, 0.9, 1.0, 2.0])
@pytest.mark.parametrize("minimum", [0.0, 1e-4])
def test_it_falls_from_base_to_the_minimum_and_stays_real_there(power, minimum):
    rates = [learning_rate(step, STEPS, 1e-2, power, minimum=minimum) for step in range(STEPS + 20)]
    assert all(isinstance(rate, float) for rate in rates)
    assert rates[0] == 1e-2
    assert all(later < earlier for earlier, later in pairwise(rates[: STEPS + 1]))
    assert rates[STEPS:] == [minimum] * 20


def test_the_warm_up_rises_to_the_curve_and_joins_it():
    rates = [learning_rate(step, 100, 0.1, warmup=10) for step in range(100)]
    plain = [learning_rate(step, 100, 0.1) for step in range(100)]
    assert 0 < rates[0] < 0.011
    assert all(later > earlier for earlier, later in pairwise(rates[:10]))
    assert rates[9:] == plain[9:]


def test_a_warm_up_longer_than_the_run_is_no_division_by_zero():
    assert all(0 <= learning_rate(step, 5, 0.1, warmup=10) <= 0.1 for step in range(12))
