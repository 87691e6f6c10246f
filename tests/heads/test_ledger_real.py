"""The ledger and the waterfall close on real weights and real samples."""

import numpy as np
import pytest

from sa_plugin.concepts import fit
from sa_plugin.data import ConceptData
from sa_plugin.heads import BankScores, explain_tokens, head_ledger, tail_waterfall, term_means
from sa_plugin.host import attach
from sa_plugin.loaders import load, shapes
from sa_plugin.scores import score
from sa_plugin.statistics import Resampling
from sa_transformer_lens.host import load_bridge

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("ignore::UserWarning")]
LAYERS = {"smollm2": (10, 20), "minilm": (2, 4), "vit": (3, 9)}


def passages():
    full = load("supersense")
    concepts = ("person", "time")
    samples = [s for s in full.samples if s.positive & set(concepts)][::3]
    samples = sorted(samples, key=lambda s: len(s.text))[:30]
    return ConceptData.from_samples([s.only(concepts) for s in samples], concepts)


def scenes():
    found, concepts = shapes(24, seed=3), ("red", "sphere")
    return ConceptData.from_samples([s.only(concepts) for s in found.samples], concepts, found.split_of)


@pytest.fixture(scope="module", params=["smollm2", "minilm", "vit"])
def case(request):
    host = attach(load_bridge(request.param))
    data = scenes() if request.param == "vit" else passages()
    bank = fit(host, data, "prototype", layers=LAYERS[request.param])
    table = score(host, data, bank, splits=["test"])
    columns = np.concatenate([table.scores[:, :, k] for k in range(2)], axis=1)
    cut = np.sort(columns, axis=0)[-max(4, len(columns) // 20)]
    return host, data, bank, np.split(columns >= cut, table.tokens.bounds[1:-1])


def test_it_closes_for_every_token(case):
    host, data, bank, tail = case
    found = head_ledger(host, data, BankScores(bank, tail=tail), permutations=3, resampling=Resampling(50))
    assert found.settings["centred"]
    assert found.residue < 1e-5
    assert found.closes_to < 1e-3
    for name in ("lift", "control", "excess"):
        terms = found.effects[name].terms.estimate
        np.testing.assert_allclose(terms.sum(0), found.effects[name].total.estimate, atol=1e-6)
    # Tokens chosen for their score lift it more than permuted vectors' own tails lift theirs.
    assert (found.lift.total.estimate > 0).all()
    assert np.isfinite(found.share("heads").estimate).all()


def test_one_text_closes_centred(case):
    host, data, bank, _ = case
    means = None if bank.component_means is not None else term_means(host, data, bank)
    one = explain_tokens(
        host, bank, data.test.samples[0], data.concepts[0], layer=bank.layers[-1], means=means
    )
    np.testing.assert_allclose(one.terms.sum(1), one.score, atol=1e-3)
    assert "reference" not in {c.name for c in one.components}


def test_the_waterfall_ends_at_the_ledgers_lift(case):
    host, data, bank, tail = case
    ledger = head_ledger(host, data, BankScores(bank, tail=tail), permutations=0, resampling=Resampling(50))
    found = tail_waterfall(host, data, BankScores(bank, tail=tail), resampling=Resampling(50))
    assert found.residue < 1e-5
    for k, column in enumerate(ledger.columns):
        total = float(ledger.projection.lift.total.estimate[k])
        for way in ("fixed", "refitted"):
            level = np.cumsum(found.heights(column.concept, way, layer=column.layer).estimate)
            assert level[-1] == pytest.approx(total, abs=1e-4 * max(1.0, np.abs(level).max()))
