"""Curves of steering are the sums of a plain loop, and what is said at equal effect is read off them."""

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from both_hosts import host_on, on_both
from test_steer import LAYER, detector_on, plain_scores
from word_data import word_data

import sa_plugin as sa
from sa_plugin.generation import steer_result
from sa_plugin.host import Site, adapter

STRENGTHS = (1.0, 3.0, 6.0)


@cache
def found_on(library, name, **options):
    host, data = host_on(library, name), word_data(30)
    detector, judge = detector_on(library, name), detector_on(library, name, "prototype")
    return sa.steering_curves(
        host, detector, "animal", judge, data.test, strengths=STRENGTHS, new_tokens=3, **options
    )


@on_both("gpt2", "llama")
def test_curves_are_those_of_a_plain_loop(library, name):
    host, data, found = host_on(library, name), word_data(30), found_on(library, name)
    detector, judge = detector_on(library, name), detector_on(library, name, "prototype")
    assert found.judges == ("separator at block 2", "prototype at block 2")
    bank = detector.bank
    at, k = bank.index(LAYER), bank.unit("animal")
    v, scale = bank.token.vectors[at, k], bank.token.scale[at]
    push, tau = scale * v / (v @ v), detector.threshold["animal"]
    labels = data.test.sample_labels[:, data.concepts.index("animal")]
    for arm, s in (("all", 3.0), ("superactivators", 6.0)):
        highest, nats, targets, touched, tokens, scores = [], 0.0, 0, 0, 0, []
        for n, sample in enumerate(data.test.samples):
            (batch,) = host.batches([sample])
            valid = batch.valid[0].clone()
            first, kept = valid.nonzero()[0, 0], {}

            def edit(h, valid=valid, first=first, arm=arm, s=s, kept=kept):
                on = valid.clone()
                if arm == "superactivators":
                    on &= torch.from_numpy(plain_scores(detector, "animal", LAYER, h[0]) >= tau)
                    on[first] = on[first] & host.info.bos
                kept["on"] = on
                return h + s * on[None, :, None] * push

            inputs = host.passes.inputs(batch.inputs)
            place = host.hook_name(Site(LAYER, "resid_post"))
            rows, losses = [], []
            for change in (None, edit):
                out = host.passes.output(inputs, place, change) if change else host.passes.output(inputs)
                target = batch.inputs["input_ids"][0, 1:]
                losses.append(torch.nn.functional.cross_entropy(out[0, :-1], target, reduction="none"))
                rows.append(judged(host, batch, change))
            own = batch.valid[0, 1:]
            nats += float((losses[1] - losses[0])[own].sum())
            targets += int(own.sum())
            touched += int(kept["on"].sum())
            tokens += int(valid.sum())
            own = valid.clone()
            own[first] = host.info.bos
            pair = [plain_scores(judge, "animal", 2, h[0])[own.numpy()] for h in rows]
            scores.append(pair[0])
            if labels[n]:
                highest.append(pair[1].max() - pair[0].max())
        size = np.concatenate(scores).std(ddof=1)
        got = found.given.sel(arm=arm, strength=s)
        assert got.sel(measure="nats a token").estimate == pytest.approx(nats / targets, abs=2e-5)
        assert got.sel(measure="steered tokens").estimate == pytest.approx(touched / tokens)
        name_of = f"highest token, {found.judges[1]}"
        assert got.sel(measure=name_of).estimate == pytest.approx(np.mean(highest) / size, abs=2e-4)


def judged(host, batch, change):
    """The residual at the judge's block, with one place edited or none."""
    seen = {}

    def at(layer):
        return adapter.part_of(host.places, host.info, Site(layer, "resid_post"))

    looks = {at(LAYER): change} if change else {}
    looks[at(2)] = lambda h: seen.update(h=h.clone())
    with host.passes.showing(adapter.Looks(looks, lambda ids: None, lambda mask: None)):
        host.passes.output(host.passes.inputs(batch.inputs))
    return seen["h"]


@on_both("llama")
def test_controls_are_of_the_same_size_and_number(library, name):
    found = found_on(library, name)
    touched = found.given.sel(measure="steered tokens")
    for arm in ("random tokens", "random direction", "permuted labels"):
        np.testing.assert_array_equal(touched.sel(arm=arm).values, touched.sel(arm="superactivators").values)
    assert (touched.sel(arm="all").estimate == 1).all()
    assert found.own is not None
    assert found.own.axes["arm"] == ("superactivators", "all", "random direction")
    again = found_on.__wrapped__(library, name)
    np.testing.assert_array_equal(found.given.values, again.given.values)
    np.testing.assert_array_equal(found.own.values, again.own.values)


def test_at_equal_effect_costs_are_the_curves_own():
    s = np.array([1.0, 2.0, 4.0])
    columns = np.array([1.0, 1.1, 0.9])
    effect, cost = s[:, None] * columns, (s**2)[:, None] * columns
    nothing = steer_result.at_equal_effect(tuple(s), effect, [cost], np.zeros(3))
    assert np.isnan(nothing).all()
    for wanted in (0.5, 1.5, 3.9):
        (got,) = steer_result.at_equal_effect(tuple(s), effect, [cost], np.full(3, wanted) * columns)
        np.testing.assert_allclose(got, wanted**2 * columns)
    beyond = steer_result.at_equal_effect(tuple(s), effect, [cost], np.full(3, 5.0))
    assert np.isnan(beyond).all()
    # Of a curve that turns the first strength with that effect counts.
    turned = np.array([[1.0], [2.0], [0.0]])
    (got,) = steer_result.at_equal_effect(tuple(s), turned, [s[:, None]], np.array([1.5]))
    assert got == pytest.approx(1.5)


def test_what_is_said_follows_from_the_numbers():
    found = found_on("nnsight", "llama")
    drawn = found.equal
    shape = drawn.values.shape
    rng = np.random.default_rng(0)

    def said(mean, spread, at=None):
        values = mean + spread * rng.standard_normal(shape) * np.r_[0.0, np.ones(shape[-1] - 1)]
        if at is not None:
            values[..., at:, :] = np.nan
        return dataclasses.replace(found, equal=drawn.like(values)).verdict()

    assert "at the effect of strength 6" in said(-1.0, 0.001)
    assert said(-1.0, 0.001).count(" less, -1.000 [") == 3
    assert said(1.0, 0.001).count(" more, +1.000 [") == 3
    assert said(0.1, 5.0).count(" cannot tell, +0.100 [") == 3
    assert "(could have told" in said(0.1, 5.0)
    assert "at the effect of strength 1 (" in said(-1.0, 0.001, at=1)
    assert "steering everywhere has the effect of no strength here" in said(-1.0, 0.001, at=0)
    with pytest.raises(ValueError, match=r"effect"):
        found.verdict("highest tokn")
    assert len(found.plot().axes) == 3
    assert found.to_dict()["kind"] == "SteeringCurves"
    assert {"given", "own", "equal"} <= set(found.numbers())
    assert "leak" in found._repr_html_()
    assert found.verdict() in str(found).replace("\n", " ").replace("At the", "at the")


def test_bad_input_is_refused():
    host, data = host_on("nnsight", "llama"), word_data(30)
    detector, judge = detector_on("nnsight", "llama"), detector_on("nnsight", "llama", "prototype")

    def asked(match, judge=judge, split=data.test, of=detector, **options):
        with pytest.raises(ValueError, match=match):
            sa.steering_curves(host, of, "animal", judge, split, **options)

    for wrong in ((1.0,), (2.0, 1.0), (-1.0, 2.0), (0.0, 1.0)):
        asked(r"strengths are \[.*give two or more of one sign", strengths=wrong)
    asked(r"strengths\[1\] is nan", strengths=(1.0, float("nan")))
    asked(r"judge is of kind 'separator', as the detector that steers", judge=detector)
    asked(r"trained|train", split=data.train)
    early = detector_on("nnsight", "llama", "prototype", layers=(0, 1))
    # The calibrated block has no judge behind it: the best of those before.
    found = sa.steering_curves(host, detector, "animal", early, data.test, strengths=STRENGTHS)
    assert found.layer == 0
    assert found.judges[1] == "prototype at block 1"
    labels = data.test.sample_labels[:, data.concepts.index("animal")]
    some = [s for s, has in zip(data.test.samples, labels, strict=True) if has]
    asked(
        r"passages have 'animal': steering_curves compares",
        split=dataclasses.replace(data.test, samples=tuple(some)),
    )
    asked(r"strength is 3: with how='project_out'", strengths=(1.0, 3.0), how="project_out")
