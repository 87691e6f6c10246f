"""An answer of a server is held against what was asked for."""

from functools import partial

import pytest
import torch

from sa_nnsight.answers import checked_answer
from sa_nnsight.faults import RemoteFault
from sa_plugin.host import reducers

LAYERS, UNITS, WIDTH = (0, 2), 3, 4


def jobs_and_answer(seed=0):
    """Two traces with every reducer that a server runs, and what it makes of random activations."""
    rng = torch.Generator().manual_seed(seed)
    jobs, results = [], []
    for samples, tokens in ((2, 5), (1, 3)):
        valid = torch.ones(samples, tokens, dtype=torch.bool)
        valid[0, -1] = False
        draw = partial(torch.randn, generator=rng)
        vectors = (draw(2, UNITS, WIDTH), draw(2, WIDTH), torch.ones(2), True)
        rows = int(valid.sum())
        labels = torch.zeros(rows, 2, dtype=torch.bool), torch.zeros(samples, 1, dtype=torch.bool)
        own = (
            partial(
                reducers.token_scores,
                valid=valid,
                banks=((LAYERS, "resid_post", {n: vectors for n in ("token", "permuted", "pooled")}),),
                class_index=None,
            ),
            partial(reducers.maxima, layers=LAYERS, point="resid_post", vectors=vectors, top=2, places=True),
            partial(
                reducers.histogram,
                layers=LAYERS,
                point="resid_post",
                vectors=vectors,
                labels=torch.zeros(samples, tokens, UNITS, dtype=torch.bool),
            ),
            partial(
                reducers.train,
                valid=valid,
                sites=((0, "resid_post"),),
                labels=labels,
                stored=None,
                gram=True,
                writes=(),
                class_index=None,
            ),
        )
        job = partial(reducers.reduce, valid=valid, sinks=(LAYERS, "drop", True), frozen=None, jobs=own)
        read = {(layer, "resid_post"): draw(samples, tokens, WIDTH) for layer in LAYERS}
        jobs.append(job)
        results.append(job(read))
    return jobs, reducers.gather(results)


def test_what_reducers_keep_is_taken():
    jobs, answer = jobs_and_answer()
    assert checked_answer(answer, jobs) is answer
    assert checked_answer([{"able": torch.tensor(True)}]) == [{"able": torch.tensor(True)}]


ROWS, BEST, BINS = ("rows", 0, 0), ("samples", 1, "best"), ("sums", 2, "bins")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop(), "holds 1 results, expected 2"),
        (lambda a: a.append({}), "holds 3 results, expected 2"),
        (lambda a: a.__setitem__(0, []), "expected a list of dictionaries"),
        (lambda a: a[0].update({ROWS: [1.0]}), "is a list, expected a tensor"),
        (lambda a: a[0].pop(ROWS), "result 0 lacks 0 of rows"),
        (lambda a: a[0].update({ROWS: a[0][ROWS][:-1]}), "expected 9 rows"),
        (lambda a: a[0].update({ROWS: a[0][ROWS][..., :-1]}), r"shape \[9, 2, 2\], expected \[None, 2, 3\]"),
        (lambda a: a[1][ROWS].view(-1)[3].fill_(torch.nan), "result 1 holds NaN or Inf"),
        (lambda a: a[1][BEST].view(-1)[0].fill_(torch.inf), "result 1 holds NaN or Inf"),
        (lambda a: a[0].update({BEST: a[0][BEST][:1]}), "expected 2 samples"),
        (lambda a: a[1].pop(BINS), "result 1 lacks 'bins' of sums"),
        (lambda a: a[1].update({BINS: torch.zeros(3)}), r"shape \[3\], expected"),
        (lambda a: a[0].update({reducers.KEEP: a[0][reducers.KEEP].float()}), "which of its 9 tokens"),
        (lambda a: a[0].update({("rows", 7, "more"): torch.ones(9)}), "was not asked for"),
        (lambda a: a[0].update({"more": torch.ones(9)}), "was not asked for"),
    ],
)
def test_what_is_no_answer_is_refused(change, message):
    jobs, answer = jobs_and_answer()
    change(answer)
    with pytest.raises(RemoteFault, match=message) as raised:
        checked_answer(answer, jobs)
    assert raised.value.kind == "answer"


@pytest.mark.parametrize("answer", [None, "text", {}, [None], [{"a": 1.0}]])
def test_what_is_no_list_of_tensors_is_refused(answer):
    with pytest.raises(RemoteFault, match="answer is not what was asked for"):
        checked_answer(answer)
