"""What a package with parts for umscale should test: python -m pytest in the folder above, installed or not."""

import pytest
from own_parts.evaluation import COPYING
from own_parts.law import TOKENS_AND_DENSITY
from own_parts.memory import FLAT_KEYS
from own_parts.optimizer import LION
from own_parts.question import QUESTION

from umscale import testing


@pytest.mark.parametrize("shape", [{}, {"heads": 2, "top_m": 5}, {"d_pre_value": 0}])
def test_memory(shape: dict[str, int]) -> None:
    testing.check_memory(FLAT_KEYS, options={"temperature": 0.5}, **shape)


def test_optimizer() -> None:
    testing.check_optimizer(LION)


def test_law() -> None:
    testing.check_law(TOKENS_AND_DENSITY, ranges={"m": (4, 256)})


def test_question() -> None:
    testing.check_question(QUESTION)


def test_evaluation() -> None:
    testing.check_evaluation(COPYING)
