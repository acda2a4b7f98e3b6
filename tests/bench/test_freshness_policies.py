"""When a vector is made, who has which phase, and the figures of many ranks."""

import numpy as np
import pytest

from bench.freshness.policies import NEVER_US, POLICIES, Policy, Schedule, schedule
from bench.freshness.statistics import resampled_means, summarise
from training.evaluation.intervals import interval

SECOND = 1_000_000


def of(name: str, phase_s: float = 0, lag_s: float = 0, cut_s: float = 0) -> Schedule:
    policy = next(one for one in POLICIES if one.name == name)
    return Schedule(policy, np.array([round(phase_s * SECOND)]), round(lag_s * SECOND), round(cut_s * SECOND))


def as_of_s(one: Schedule, time_s: float) -> float:
    return float(one.as_of(np.array([round(time_s * SECOND)]), np.array([0]))[0]) / SECOND


@pytest.mark.parametrize(
    ("one", "time_s", "expected_s"),
    [
        (of("event"), 100, 100),
        (of("event", lag_s=3), 100, 97),
        (of("10s"), 100, 100),
        (of("10s"), 109.9, 100),
        (of("10s", phase_s=4), 100, 94),
        (of("10s", phase_s=4), 104, 104),
        (of("2min", phase_s=30, lag_s=5), 1000, 985),
        (of("1h", phase_s=600), 599, -3000),
        (of("1d", phase_s=7), 86_400, 7),
        (of("never", cut_s=50, lag_s=5), 1000, 50),
    ],
    ids=lambda value: value.policy.name if isinstance(value, Schedule) else str(value),
)
def test_a_vector_is_as_of_the_last_time_its_user_was_due(one: Schedule, time_s: float, expected_s: float):
    assert as_of_s(one, time_s) == expected_s


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
@pytest.mark.parametrize("lag_s", [0, 0.5, 90])
def test_an_event_is_visible_from_just_when_a_vector_has_it(policy: Policy, lag_s: float):
    random = np.random.default_rng(3)
    one = schedule(policy, users=5, seed=1, lag_s=lag_s, cut_us=4000 * SECOND)
    users = random.integers(5, size=4000)
    events, asked = random.integers(8000, size=(2, 4000)) * SECOND
    events[:500] = one.as_of(asked[:500], users[:500])  # just at the edge: not strictly earlier
    has = events < one.as_of(asked, users)
    visible = one.visible_from(events, users)
    after = (asked >= 4000 * SECOND) | (policy.period_us is not None)  # before the cut nobody asks
    assert np.array_equal(has[after], asked[after] >= visible[after])
    assert (visible == NEVER_US).any() == (policy.period_us is None)


def test_phases_are_a_users_own_and_come_from_the_seed_alone():
    hour, minutes = (next(one for one in POLICIES if one.name == name) for name in ("1h", "10min"))
    phases = [schedule(hour, users=1000, seed=seed, lag_s=0, cut_us=0).phases_us for seed in (0, 0, 1)]
    assert np.array_equal(phases[0], phases[1])
    assert not np.array_equal(phases[0], phases[2])
    assert len(np.unique(phases[0])) == 1000
    assert phases[0].min() >= 0
    assert phases[0].max() < 3600 * SECOND
    shorter = schedule(minutes, users=1000, seed=0, lag_s=0, cut_us=0).phases_us
    assert np.allclose(shorter * 6, phases[0], atol=6), "the same share of every period"


def test_means_are_over_targets_and_over_users_by_hand():
    ranks = {"one": np.array([0, 1, 9, 10]), "other": np.array([10, 10, 10, 0])}
    one, other = summarise(ranks, np.array([7, 7, 7, 3]), resamples=100, seed=0, against=["other"])
    assert one["R@10"] == 0.75
    assert one["N@10"] == pytest.approx((1 + 1 / np.log2(3) + 1 / np.log2(11)) / 4)
    assert one["user_macro"]["R@10"] == 0.5
    assert other["minus_one"]["R@10"] == other["minus_previous"]["R@10"] == -0.5
    assert one["minus_other"]["R@10"] == 0.5
    assert other["minus_other"] == {"R@10": 0.0, "low": 0.0, "high": 0.0}
    assert (other["low"], other["high"]) == (0.0, 1.0), "of two users either may be drawn twice"


def test_the_bootstrap_draws_users_and_the_same_ones_for_every_policy():
    random = np.random.default_rng(0)
    owner = np.repeat(np.arange(200), 10)
    luck = random.random(200)[owner]  # all of a user's targets fare alike
    values = np.stack([luck, luck - 0.25], axis=1)
    drawn = resampled_means(values, owner, resamples=2000, seed=0)
    assert drawn[:, 0].std() == pytest.approx(luck[::10].std() / 200**0.5, rel=0.1), (
        "the error of 200 users, not of 2,000 targets"
    )
    assert interval(drawn[:, 1] - drawn[:, 0]) == pytest.approx((-0.25, -0.25))
    assert np.array_equal(drawn, resampled_means(values, owner, resamples=2000, seed=0))


def test_a_user_brings_all_targets_along_so_the_mean_is_over_those_drawn():
    owner = np.array([0, 0, 0, 1])
    drawn = resampled_means(np.array([[1.0], [1.0], [1.0], [0.0]]), owner, resamples=2000, seed=0)
    assert set(np.unique(drawn)) == {0.0, 0.75, 1.0}, "of two users either twice, or both with three targets and one"
