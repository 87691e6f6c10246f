"""What the tests of the ledger share: data of words, detectors, and oracles by plain loops."""

import copy
import warnings

import numpy as np
import torch
from word_data import ANIMALS, FOODS, word_data

from sa_plugin.concepts import fit
from sa_plugin.detection import calibrate
from sa_plugin.heads import BankScores, explain_tokens, head_ledger
from sa_plugin.host import OutputProjection, Site
from sa_plugin.statistics import Resampling

FEW = (0.1, 0.3, 0.5)


def make_data(n=80, documents=40, seed=0):
    return word_data(n, 4, documents=documents, seed=seed)


def detector_of(host, data, kind, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bank = fit(host, data, kind, **options)
        return calibrate(host, data, bank, deltas=FEW)


def ledger(host, data, source, *, draws=200, layers=None, tail=None, **options):
    """With few draws; of a bank at some layers or with a tail."""
    if layers is not None or tail is not None:
        source = BankScores(source, layers, tail)
    return head_ledger(host, data, source, resampling=Resampling(draws), **options)


def kept_rows(host, samples, layers):
    """Oracle: kept positions of samples run one at a time: no sinks here, no first token."""
    for sample in samples:
        (batch,) = host.batches([sample])
        keep = batch.valid[0].clone()
        if host.info.causal and not host.info.bos:
            keep[int(keep.nonzero()[0])] = False
        sites = [Site(layer, "resid_post") for layer in layers]
        norms = host.read(batch, sites, lambda r: {"n": torch.stack([v.norm(dim=-1) for v in r.values()])})[
            "n"
        ]
        for row in norms[:, 0]:
            keep &= ~(row > 10 * row[batch.valid[0]].median())
        yield batch, keep


def loop_terms(host, bank, samples, concept, layer):
    """Terms `[token, component]` and scores of each sample, one at a time."""
    rows = [explain_tokens(host, bank, s, concept, layer=layer) for s in samples]
    return [r.terms.astype(float) for r in rows], [r.score for r in rows]


def loop_lift(terms, tails):
    top = [(t, tail) for t, tail in zip(terms, tails, strict=True) if tail.any() and not tail.all()]
    pairs = [token - t[~tail].mean(0) for t, tail in top for token in t[tail]]
    return np.mean(pairs, axis=0)


def loop_lifts(terms, scores, tails, inside, negative):
    """Oracle: the tail of every sample against three other groups, token by token."""
    pairs = list(zip(terms, scores, tails, inside, negative, strict=True))
    tail = np.mean([r for t, _, top, _, _ in pairs if not top.all() for r in t[top]], axis=0)
    rest = np.mean([r for t, _, top, i, _ in pairs for r in t[i & ~top]], axis=0)
    best = np.mean([t[s.argmax()] for t, s, _, _, n in pairs if n], axis=0)
    return {"lift": loop_lift(terms, tails), "in_concept_lift": tail - rest, "strongest_lift": tail - best}


def labels_of(sample):
    return ["animal" if w in ANIMALS else "food" if w in FOODS else "" for w in sample.text.split()]


def with_methods(host, **methods):
    """A copy of a host with methods of one's own.

    They are set on it: from Python 3.12 on a protocol does not see what `__getattr__` gives.
    """
    found = copy.copy(host)
    # Hosts are frozen.
    vars(found).update(methods)
    return found


def broken(host, *, factor=1.0, block=1, extra=0.0):
    """A copy of a host whose weights or writes are not the model's."""

    def output_projection(layer):
        weight, bias = host.output_projection(layer)
        return OutputProjection(weight * (factor if layer == block else 1.0), bias)

    def read(batch, sites, reduce):
        def changed(read):
            return reduce({s: v + extra if s == Site(block, "resid_post") else v for s, v in read.items()})

        return host.read(batch, sites, changed)

    return with_methods(host, output_projection=output_projection, read=read)
