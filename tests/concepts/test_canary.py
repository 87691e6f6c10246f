"""An artefact proves itself: a model that scores our canaries otherwise is refused, with the cause."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from fake_host import FakeHost, in_batches
from word_data import word_data

from sa_plugin.concepts import (
    TOLERANCE,
    CanaryWarning,
    ConceptBank,
    DriftError,
    canary_samples,
    drift_between,
    fit,
    load_bank,
    make_canary,
    save_bank,
)
from sa_plugin.detection import Detector, calibrate
from sa_plugin.statistics import Resampling

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:sa_plugin")


class Drifted(FakeHost):
    """The same model by all that it says of itself, whose residuals are a little other."""

    def __init__(self, by, **options):
        super().__init__(**options)
        self.by = by

    def read(self, batch, sites, reduce):
        noise = torch.Generator().manual_seed(3)

        def moved(read):
            return reduce({s: h + self.by * torch.randn(h.shape, generator=noise) for s, h in read.items()})

        return super().read(batch, sites, moved)


@pytest.fixture(scope="module")
def data():
    return word_data(60, documents=20)


@pytest.fixture(scope="module")
def detector(data):
    host = FakeHost()
    return calibrate(host, data, fit(host, data, "prototype"))


@pytest.fixture
def folder(tmp_path, detector):
    return detector.save_pretrained(tmp_path / "saved")


def test_the_model_it_was_saved_with_is_taken_without_a_word(folder, recwarn):
    for host in (FakeHost(), in_batches(FakeHost(), 5), Drifted(1e-7)):
        found = Detector.from_pretrained(folder, host=host)
        assert found.bank.origin.drift == ""
    assert not [w for w in recwarn if issubclass(w.category, CanaryWarning)]


def test_another_model_that_says_it_is_the_same_is_refused(folder):
    with pytest.raises(DriftError, match=r"moved by .* spread.*nothing that the model says.*allow_drift"):
        Detector.from_pretrained(folder, host=Drifted(0.05))


def test_what_was_allowed_is_recorded_in_what_follows(folder, data, tmp_path):
    host = Drifted(0.05)
    with pytest.warns(CanaryWarning, match="moved by"):
        found = Detector.from_pretrained(folder, host=host, allow_drift=True)
    said = found.bank.origin.drift
    assert "moved by" in said
    evaluation = found.evaluate(data.test, resampling=Resampling(10))
    for one in (found, evaluation, found.evaluate_tokens(data.test, resampling=Resampling(10)), found.bank):
        assert "Loaded with allow_drift" in " ".join(str(one).split())
        assert said in repr(one.to_dict())
    again = Detector.from_pretrained(found.save_pretrained(tmp_path / "again"), host=host)
    assert again.bank.origin.drift == said


CAUSES = {
    "another number format": {"dtype": "bfloat16"},
    "another tokenizer": {"tokenizer": "other"},
    "puts a BOS first now": {"bos": True},
    "another weight processing": {"processing": "compatibility"},
    "another checkpoint": {"fingerprint": "other"},
}


@pytest.mark.parametrize("cause", CAUSES)
def test_a_bank_of_given_vectors_names_the_cause(tmp_path, cause):
    rng = torch.Generator().manual_seed(0)
    bank = ConceptBank.from_vectors({("a", k): torch.randn(12, generator=rng) for k in (0, 2)})
    host = FakeHost().with_info(tokenizer="own")
    save_bank(bank, tmp_path / "bank", host=host)
    assert load_bank(tmp_path / "bank", host=host).canary is not None
    other = Drifted(0.05).with_info(**{"tokenizer": "own"} | CAUSES[cause])
    with pytest.raises(DriftError, match=cause):
        load_bank(tmp_path / "bank", host=other)
    assert load_bank(tmp_path / "bank", host=other, allow_drift=True).origin.drift


def test_other_tokens_are_named(tmp_path):
    class Letters(FakeHost):
        def _batch(self, samples, rows):
            spaced = [replace(s, text=" ".join(s.text.replace(" ", ""))) for s in samples]
            return super()._batch(spaced, rows)

    bank = ConceptBank.from_vectors({("a", 0): torch.ones(12)})
    save_bank(bank, tmp_path / "bank", host=FakeHost())
    with pytest.raises(DriftError, match=r"stand at other tokens .*another tokenizer"):
        load_bank(tmp_path / "bank", host=Letters())


def test_an_artefact_without_canaries_says_so(tmp_path):
    bank = ConceptBank.from_vectors({("a", 0): torch.ones(12)})
    save_bank(bank, tmp_path / "bank")
    assert load_bank(tmp_path / "bank").canary is None
    with pytest.warns(CanaryWarning, match="has no canaries"):
        load_bank(tmp_path / "bank", host=FakeHost())


def test_canaries_stay_with_an_artefact_that_is_saved_again_without_a_host(folder, tmp_path):
    again = Detector.from_pretrained(folder).save_pretrained(tmp_path / "again")
    with pytest.raises(DriftError):
        Detector.from_pretrained(again, host=Drifted(0.05))


def test_a_host_that_cannot_score_them_loses_no_artefact(tmp_path, detector):
    host = FakeHost()
    host.poison = 0
    with pytest.warns(CanaryWarning, match=r"saved without canaries.*NaN"):
        replace(detector, host=host).save_pretrained(tmp_path / "saved")
    assert Detector.from_pretrained(tmp_path / "saved").threshold == detector.threshold


def test_drift_is_nought_for_equal_scores_and_grows_with_what_moves(detector):
    one = make_canary(detector.bank, FakeHost())
    drifts = [drift_between(one, make_canary(detector.bank, Drifted(by))) for by in (0, 1e-4, 1e-2, 1)]
    assert drifts[0] == 0
    assert drifts == sorted(drifts)
    scaled = replace(one, scores=one.scores * 1e6)
    moved = replace(one, scores=one.scores * 1e6 * (1 + 1e-3))
    assert drift_between(scaled, moved) == pytest.approx(
        drift_between(one, replace(one, scores=one.scores * (1 + 1e-3))), rel=1e-2
    )


def test_the_inputs_are_ours_and_always_the_same():
    first, again = canary_samples(True), canary_samples(True)
    assert [s.content for s in first] == [s.content for s in again]
    assert {s.image.pixels.shape for s in first} == {(96, 96, 3)}
    assert len({s.text for s in canary_samples(False)}) == 4


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_a_tiny_model_in_half_precision_and_with_other_weights(tmp_path, architecture):
    host = tiny.host(architecture)
    rng = torch.Generator().manual_seed(0)
    bank = ConceptBank.from_vectors(
        {("a", k): torch.randn(host.info.d_model, generator=rng) for k in (0, host.info.n_layers - 1)}
    )
    save_bank(bank, tmp_path / "bank", host=host)
    assert load_bank(tmp_path / "bank", host=host).origin.drift == ""
    with pytest.raises(DriftError, match=r"another number format \(float32, now bfloat16"):
        load_bank(tmp_path / "bank", host=tiny.host(architecture, dtype=torch.bfloat16))
    with torch.no_grad():
        for part in host.model.parameters():
            part.mul_(1 + 0.05 * torch.randn(part.shape, generator=rng))
    with pytest.raises(DriftError, match="weights were edited"):
        load_bank(tmp_path / "bank", host=host)


def test_special_tokens_that_are_left_out_are_named(tmp_path):
    host = tiny.host("bert")
    rng = torch.Generator().manual_seed(0)
    bank = ConceptBank.from_vectors({("a", 1): torch.randn(host.info.d_model, generator=rng)})
    save_bank(bank, tmp_path / "bank", host=host)
    with pytest.raises(DriftError, match="does not put a BOS first now"):
        load_bank(tmp_path / "bank", host=tiny.host("bert", add_special_tokens=False))


@pytest.fixture(scope="module")
def smollm2():
    """The folder of a real model, and a host of it."""
    import weights

    from sa_plugin.host import open_folder

    return weights.folder("smollm2"), open_folder(
        weights.folder("smollm2"), "transformer_lens", progress=False
    )


@pytest.fixture(scope="module")
def saved(smollm2, tmp_path_factory):
    rng = np.random.default_rng(0)
    vectors = {("a", k): torch.from_numpy(rng.normal(size=576)).float() for k in (4, 20)}
    folder = tmp_path_factory.mktemp("canary") / "bank"
    save_bank(ConceptBank.from_vectors(vectors, scoring="cosine"), folder, host=smollm2[1])
    return folder


@pytest.mark.real
def test_a_real_model_in_another_library(smollm2, saved):
    from sa_plugin.host import open_folder

    other = open_folder(smollm2[0], "nnsight", progress=False)
    assert load_bank(saved, host=other).origin.drift == ""


@pytest.mark.real
def test_a_real_model_in_half_precision(smollm2, saved):
    from sa_plugin.host import open_folder

    other = open_folder(smollm2[0], "nnsight", progress=False, dtype=torch.bfloat16)
    with pytest.raises(DriftError, match="number format"):
        load_bank(saved, host=other)


@pytest.mark.real
def test_a_real_model_whose_weights_were_rounded(smollm2, saved):
    host, kept = smollm2[1], []
    try:
        with torch.no_grad():
            for part in host.model.parameters():
                if part.ndim == 2:
                    kept.append((part, part.clone()))
                    size = part.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
                    part.copy_((part / size).round() * size)
        with pytest.raises(DriftError, match="nothing that the model says of itself"):
            load_bank(saved, host=host)
    finally:
        with torch.no_grad():
            for part, before in kept:
                part.copy_(before)


@pytest.mark.real
def test_pictures_on_a_real_model(tmp_path):
    from sa_plugin.host import find_folder, open_folder

    def opened(library, dtype=torch.float32):
        return open_folder(find_folder("vit"), library, progress=False, dtype=dtype)

    host, other, rng = opened("transformer_lens"), opened("nnsight"), np.random.default_rng(0)
    vectors = {("a", k): torch.from_numpy(rng.normal(size=384)).float() for k in (2, 6, 10)}
    bank = ConceptBank.from_vectors(vectors, scoring="cosine")
    save_bank(bank, tmp_path / "bank", host=host)
    for same in (host, other):
        assert load_bank(tmp_path / "bank", host=same).origin.drift == ""
    with pytest.raises(DriftError, match="another number format"):
        load_bank(tmp_path / "bank", host=opened("nnsight", torch.bfloat16))
    with torch.no_grad():
        for part in other.places.root.parameters():
            part.mul_(1.001)
    with pytest.raises(DriftError, match="weights were edited"):
        load_bank(tmp_path / "bank", host=other)
    # A copy of the weights says what it is when it is attached.
    with pytest.raises(DriftError, match="another checkpoint"):
        load_bank(tmp_path / "bank", host=replace(other, info=replace(other.info, fingerprint="copy")))
    with torch.no_grad():
        for part in host.places.root.parameters():
            if part.ndim == 2:
                size = part.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
                part.copy_((part / size).round() * size)
    with pytest.raises(DriftError, match="quantised in place"):
        load_bank(tmp_path / "bank", host=host)


def test_tolerances_are_of_number_formats_that_hosts_know():
    assert set(TOLERANCE) == {"float64", "float32", "float16", "bfloat16"}
