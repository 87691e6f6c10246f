"""Interrupts at random moments of whatever is asked of a model: the next call finds it as it was.

Half of the moments lie where things are put on a model and taken off; in a third of the tries the
recovery is interrupted as well.
"""

import random
from collections import Counter

import interrupts
import pytest
from both_hosts import LIBRARIES
from fuzzing import tries


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_call_after_an_interrupt_finds_the_model_as_it_was(library):
    case, rng, tally = interrupts.case_on(library), random.Random(1), Counter()
    for _ in range(tries(20, 500)):
        name = rng.choice(list(case.work))
        moment = case.moment(name, rng)
        again = rng.randint(1, 100) if rng.random() < 1 / 3 else None
        hit, cleaned, wrong = case.interrupt(name, moment, again)
        tally.update(interrupted=hit, cleaned=cleaned, wrong=bool(wrong))
        assert not wrong, f"{name} at {moment}, again at {again}: {wrong}"
    print(f"\ninterrupts on {library}: {dict(tally)}")
    # Bars redraw by the clock, so that some work is over before a moment that another run of it had.
    assert tally["interrupted"] > 0.7 * tries(20, 500)
