"""Whose tail heads carry: rule by rule on numbers, and in worlds where the answer is known."""

import zlib

import numpy as np
import pytest
import torch
from ablation_cases import EditableFake
from planted import PlantedHost

from sa_plugin.concepts import fit
from sa_plugin.data import ConceptData
from sa_plugin.detection import calibrate
from sa_plugin.heads import HeadSets, ablation_curve, rank_heads, whose
from sa_plugin.host import HostInfo, OutputProjection, Site, apply_edit
from sa_plugin.statistics import Drawn, Resampling

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
WIDTH, BLOCKS, HEADS = 24, 2, 6
OWN, GENERIC = (0, 1), (1, 4)


class TokenHeads(PlantedHost):
    """Heads that attend to their own token alone: linear maps `v` and `o` of what a token is."""

    edits: tuple = ()
    edited = EditableFake.edited

    def __init__(self, maps, table):
        super().__init__(maps, table, 0)
        shape = ("Tokens", BLOCKS, WIDTH, HEADS, WIDTH, "pre_norm", True, True, "none", "float32", "tokens")
        self.info = HostInfo("tokens", "tokens", *shape)

    def read(self, batch, sites, reduce):
        rows = batch.inputs["ids"].tolist()
        x = torch.stack([torch.stack([self.table.get(i, torch.zeros(WIDTH)) for i in row]) for row in rows])
        got = {}
        for b in range(BLOCKS):
            got[Site(b, "resid_pre")] = x
            z = torch.einsum("btd,hde->bthe", x, self.maps["v"][b])
            for edits in self.edits:
                z = apply_edit(edits.get(Site(b, "z"), lambda same: same), z)
            attn = torch.einsum("bthe,hed->btd", z, self.maps["o"][b])
            got |= {Site(b, "z"): z, Site(b, "attn_out"): attn, Site(b, "mlp_out"): torch.zeros_like(attn)}
            x = x + attn
            got[Site(b, "resid_post")] = x
        return reduce({site: got[site].clone() for site in sites})

    def output_projection(self, layer):
        return OutputProjection(self.maps["o"][layer], None)


def world(own, generic, n=240, length=12):
    """One concept along a direction; a head that writes it, and one that copies all the rest.

    Args:
        own: Gain of the head that reads and writes the concept alone.
        generic: Gain of the head that copies a token as it is, the concept's direction included only
            where no head is the concept's own.
        n, length: Of the samples.
    """
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    maps = {m: 0.02 * torch.randn(BLOCKS, HEADS, WIDTH, WIDTH, generator=generator) for m in "vo"}
    along = torch.eye(WIDTH)[0]
    rest = torch.eye(WIDTH) - torch.outer(along, along) * bool(own)
    for (b, h), v, gain in ((OWN, torch.outer(along, along), own), (GENERIC, rest, generic)):
        maps["v"][b, h] += v
        maps["o"][b, h] += gain * torch.eye(WIDTH)
    words = [[f"s{s}t{t}" for t in range(length)] for s in range(n)]
    labelled = (rng.random((n, length)) < 0.2) & (rng.random((n, 1)) < 0.5)
    x = torch.randn(n, length, WIDTH, generator=generator) + 3 * torch.from_numpy(labelled)[..., None] * along
    table = {zlib.crc32(w.encode()): x[s, t] for s, row in enumerate(words) for t, w in enumerate(row)}
    labels = [[["red"] * int(y) for y in row] for row in labelled]
    data = ConceptData.from_words(words, labels, concepts=("red",), name="tokens")
    return TokenHeads(maps, table), data


def answered(own, generic, **options):
    host, data = world(own, generic, **options)
    detector = calibrate(host, data, fit(host, data, "lda", layers=[1]), deltas=(0.3,))
    ranking = rank_heads(host, data, detector)
    sets = HeadSets((1,), ("random", "layer_matched", "permuted"), repeats=3)
    curve = ablation_curve(host, data, detector, ranking, sets=sets, resampling=Resampling(200))
    return ranking, curve


def drawn(value, spread, documents=30):
    """A mean over documents with this standard error, the data first."""
    moved = np.resize([1.0, -1.0], documents) * spread / np.sqrt(documents - 1)
    return Drawn(np.concatenate([[value], value + moved]), {}, "mean", np.ones(documents))


@pytest.mark.parametrize(
    ("takes", "beyond", "permuted", "matched", "said"),
    [
        # What it takes, and beyond the permuted sets: value and standard error.
        ((1, 0.1), (0.5, 0.1), 0.5, True, "the concept's own"),
        ((1, 0.1), (0.5, 0.1), 1.0, True, "a permuted set takes as much"),
        ((1, 0.1), (0.5, 0.3), 0.5, True, "could have told"),
        ((1, 0.6), (0.5, 0.1), 0.5, True, "what it takes is not clear"),
        ((1, 0.1), (0.0, 0.1), 1.0, True, "any vector's"),
        ((1, 0.1), (0.0, 0.1), 1.0, False, "not clear against random and matched sets"),
        ((1, 0.1), (0.0, 0.1), 1.0, None, "no random or matched sets"),
        ((1, 0.1), (0.0, 0.2), 1.0, True, "could have told"),
        ((1, 0.01), (0.1, 0.02), 0.9, True, "any vector's, with a little of its own"),
        ((-1, 0.1), (-2.0, 0.1), 1.0, True, "cannot tell"),
    ],
)
def test_the_rule_case_by_case(takes, beyond, permuted, matched, said):
    answer = whose(drawn(*takes), drawn(*beyond), np.full(5, permuted), matched)
    assert said in answer.words
    assert np.isclose(answer.could_tell, 2.9 * beyond[1], rtol=0.03)


def test_four_permutations_are_too_few():
    answer = whose(drawn(1, 0.1), drawn(0.5, 0.1), np.full(4, 0.5), True)
    assert answer.words.startswith("cannot tell (4 permuted, 5 are needed, could have told 0.29")


def test_a_head_that_serves_one_concept_is_the_concepts_own():
    ranking, curve = answered(own=1.5, generic=1.0)
    assert ranking.heads[0] == OWN
    assert {order[0] for order in ranking.permuted} == {GENERIC}
    assert curve.answer(1).said == "the concept's own"
    assert "tail gap: k 1 the concept's own" in repr(curve)


def test_a_head_that_copies_everything_is_any_vectors():
    ranking, curve = answered(own=0.0, generic=2.0)
    assert ranking.heads[0] == GENERIC
    assert curve.answer(1).said == "any vector's"
    # Permutations name the same head: it is ablated once, and weighs as often as it is named.
    sets = [*curve.of(1, "top"), *curve.of(1, "permuted")]
    assert len(sets) == 6
    assert len({id(run.result) for run in sets}) == 1
    assert "Whose tail gap: k 1 any vector's" in curve.plot().get_supxlabel()
    rows = curve.table()
    (said,) = rows[(rows.measure == "could_tell") & (rows.metric == "tail_gap")].note
    assert said == "any vector's"


def test_a_weak_head_in_few_documents_cannot_be_told():
    _, curve = answered(own=0.02, generic=0.02, n=30)
    answer = curve.answer(1)
    assert answer.said == "cannot tell"
    assert answer.could_tell > 0


def test_what_was_not_asked_is_said():
    host, data = world(0.5, 0.5, n=30)
    detector = calibrate(host, data, fit(host, data, "lda", layers=[1]), deltas=(0.3,))
    sets = HeadSets((1,), ("random",), repeats=1)
    curve = ablation_curve(host, data, detector, [OWN, GENERIC], sets=sets, resampling=Resampling(20))
    with pytest.raises(ValueError, match="whose tail it is was not asked: give a ranking with orders by"):
        curve.answer(1)
    assert "whose tail" not in str(curve)
