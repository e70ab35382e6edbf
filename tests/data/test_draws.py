"""Stateless draws: the published generator, independent rows, and what is drawn from its words."""

import numpy as np

from umscale.data.draws import Draws, mix


def test_mix_is_splitmix64() -> None:
    """The reference implementation's first three outputs for seed 1234567."""
    states = np.uint64(1234567) + np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert mix(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_rows_do_not_depend_on_their_neighbours() -> None:
    whole = Draws(3, np.arange(10)).words("a", 4, 5)
    np.testing.assert_array_equal(Draws(3, np.array([7, 2])).words("a", 4, 5), whole[[7, 2]])
    np.testing.assert_array_equal(Draws(3, np.arange(10)).words("a", 3), whole.reshape(10, 20)[:, :3])
    for other in (Draws(3, np.arange(10)).words("b", 4, 5), Draws(4, np.arange(10)).words("a", 4, 5)):
        assert not np.isin(other, whole).any()
    assert len(np.unique(whole)) == whole.size


def test_numbers_are_uniform() -> None:
    draws = Draws(0, np.arange(400))
    counts = np.bincount(draws.below(10, "n", 500).ravel(), minlength=10)
    assert ((counts - 20_000) ** 2 / 20_000).sum() < 9 + 5 * np.sqrt(18)
    values = draws.uniform("u", 500)
    assert values.min() >= 0
    assert values.max() < 1
    assert abs(values.mean() - 0.5) < 5 / np.sqrt(12 * values.size)
    lag = np.corrcoef(values[1:].ravel(), values[:-1].ravel())[0, 1]
    assert abs(lag) < 5 / np.sqrt(values.size)


def test_choices_differ_and_every_order_is_as_likely() -> None:
    found = Draws(1, np.arange(6000)).choose(4, 2, "c")
    assert (found[:, 0] != found[:, 1]).all()
    counts = np.bincount(found[:, 0] * 4 + found[:, 1], minlength=16).reshape(4, 4)
    assert (np.diag(counts) == 0).all()
    each = counts[~np.eye(4, dtype=bool)]
    assert ((each - 500) ** 2 / 500).sum() < 11 + 5 * np.sqrt(22)
    assert sorted(Draws(1, np.arange(1)).choose(50, 50, "c")[0]) == list(range(50))
    assert Draws(1, np.arange(2)).choose(1, 1, "c").tolist() == [[0], [0]]
