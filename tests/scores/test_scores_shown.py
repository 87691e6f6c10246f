"""Banks, score tables and answers show themselves, as results do."""

import html
import json

import numpy as np
import pytest
from detection_cases import make_case

from sa_plugin.concepts import ConceptBank
from sa_plugin.data import Sample
from sa_plugin.scores import PromptAnswers

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def case():
    return make_case(n=120)


@pytest.fixture(scope="module")
def answers():
    rng = np.random.default_rng(0)
    samples = tuple(
        Sample(f"t{k}", "text", "d", positive=frozenset({"a"} if k % 2 else ())) for k in range(6)
    )
    p_yes, mass = rng.random((2, 6, 2))
    replies = tuple(("Yes.", "No.") for _ in samples)
    return PromptAnswers(samples, ("a", "b"), p_yes, mass, replies, "{text} {concept}?", "model", 90)


@pytest.fixture(scope="module")
def shown(case, answers):
    clusters = make_case(n=120, units=7)
    return {
        "ConceptBank": case.bank,
        "ScoreTable": case.table,
        "clusters": clusters.table,
        "bank of clusters": clusters.bank,
        "one vector": ConceptBank.from_vectors({("a", 1): np.ones(4)}),
        "PromptAnswers": answers,
    }


@pytest.mark.parametrize(
    "name", ["ConceptBank", "ScoreTable", "clusters", "bank of clusters", "one vector", "PromptAnswers"]
)
def test_each_shows_itself(shown, name):
    one = shown[name]
    assert "\n" not in repr(one)
    page, text = one._repr_html_(), str(one)
    for sheet in one.sheets():
        assert all(html.escape(cell) in page and cell in text for row in sheet.rows for cell in row)
    assert one.about.split()[0] in text
    assert json.loads(json.dumps(one.to_dict(), allow_nan=False))["format"] == 1
    assert one.plot().axes
    assert list(one.table().columns[-5:]) == ["measure", "value", "low", "high", "note"]


def test_cosines_are_those_of_the_vectors(case):
    bank, layer = case.bank, case.bank.layers[1]
    vectors = bank.token.vectors[1].double().numpy()
    expected = vectors @ vectors.T / np.outer(*[np.linalg.norm(vectors, axis=1)] * 2)
    np.testing.assert_allclose(bank.cosines(layer), expected, atol=1e-12)
    table = bank.table()
    own = table[(table["measure"] == "largest cosine") & (table["layer"] == layer)]
    off = expected - np.eye(len(expected)) * expected
    for (_, row), k in zip(own.iterrows(), range(3), strict=True):
        assert abs(row["value"]) == pytest.approx(np.abs(off[k]).max())
    with pytest.raises(ValueError, match="nearest is"):
        bank.cosines(4)


def test_gaps_of_a_table_are_counted(case):
    table, tokens = case.table.table(), case.table.tokens
    score, inside = case.table.scores[:, 2, 1].astype(float), tokens.labels[:, 1]
    mine = table[(table["layer"] == 9) & (table["unit"] == "food")].set_index("measure")["value"]
    assert mine["in-concept tokens"] == inside.sum()
    assert mine["mean in concept"] == pytest.approx(score[inside].mean())
    assert mine["gap"] == pytest.approx((score[inside].mean() - score[~inside].mean()) / score[~inside].std())


def test_answers_are_shown_for_those_that_have_the_concept_and_the_others(answers):
    (sheet,) = answers.sheets()
    assert sheet.rows[0][:2] == ["a", "3"]
    assert sheet.rows[0][2] == f"{answers.p_yes[1::2, 0].mean():.3f}"
    assert sheet.rows[0][3] == f"{answers.p_yes[::2, 0].mean():.3f}"
    assert [row[-1] for row in sheet.rows] == ["1.000", "0.000"]
