"""Steering moves what it says, where the gate of the unsteered model says, and nothing else."""

import dataclasses
from functools import cache, partial

import generation_cases as cases
import numpy as np
import pytest
import tiny
import torch
from both_hosts import host_on, new_host, on_both
from sae_cases import ReluSAE
from word_data import word_data

from sa_plugin import calibrate, fit, steer, watch
from sa_plugin.concepts import sae_bank
from sa_plugin.generation import following
from sa_plugin.host import Site
from sa_transformer_lens import steering_hooks

LAYER, BEHIND = 1, Site(2, "resid_pre")
KINDS = {"dot": "separator", "cosine": "prototype"}
RUN = {"max_new_tokens": cases.NEW}


@cache
def detector_on(library, name, kind="separator", layers=(0, 1, 2)):
    """A detector whose first concept is calibrated at block 1 and fires at some tokens, not at all."""
    host, data = host_on(library, name), word_data(30)
    found = calibrate(host, data, fit(host, data, kind, layers=layers), deltas=(0.6,))
    tail = found.tail
    place = np.full_like(tail.layer, layers.index(LAYER))
    return dataclasses.replace(found, tail=dataclasses.replace(tail, layer=place))


def plain_scores(detector, concept, layer, h):
    """Scores of raw activations in float64, by the formula."""
    bank = detector.bank
    at, k = bank.layers.index(layer), bank.units.index(concept)
    v, mean, scale = (one[at].double().numpy() for one in vars(bank.token).values() if torch.is_tensor(one))
    x = (h.double().numpy() - mean) / scale
    found = x @ v[k]
    if bank.token.scoring == "cosine":
        found = found / np.linalg.norm(x, axis=-1) / np.linalg.norm(v[k])
    return found


def read(host, ids, mask, site):
    """What the unsteered model has at a site, for some ids."""
    part = (site.layer, site.point)
    inputs = host.passes.inputs({"input_ids": ids, "attention_mask": mask})
    return host.passes.read(inputs, [part])[part]


def off(found, right, valid):
    """Largest difference of scores, in the size of the largest where that is above 1."""
    return np.abs(found - right)[valid].max() / max(1.0, np.abs(right[valid]).max())


def longer(mask, out):
    return torch.cat([mask, torch.ones(len(mask), out.shape[1] - mask.shape[1], dtype=mask.dtype)], 1)


def plain_gate(host, detector, concept, layer, out, mask):
    """Scores of the finished ids in one clean pass, and the tokens a plain loop would steer."""
    ids, whole = out[:, :-1], longer(mask, out)[:, :-1]
    h = read(host, ids, whole, Site(layer, "resid_post"))
    scores = plain_scores(detector, concept, layer, h)
    valid = whole.bool().numpy() & ~np.isin(ids.numpy(), sorted(host.reader.encode.special))
    norms, on = h.norm(dim=-1).numpy(), np.zeros_like(valid)
    tau = detector.tail.thresholds[detector.bank.layers.index(layer), 0, detector.concepts.index(concept)]
    for row in range(len(ids)):
        seen = []
        for column in np.flatnonzero(valid[row]):
            seen.append(norms[row, column])
            first = len(seen) == 1 and not host.info.bos
            sink = first or seen[-1] > 10 * sorted(seen)[(len(seen) - 1) // 2]
            on[row, column] = scores[row, column] >= tau and not sink
    return scores, valid, on, tau


def steered(host, detector, run, *args, **options):
    """The output of a run under steering, what was steered, and the residual behind the edit."""
    recorder = cases.Recorder(sites=(BEHIND,))
    steering = steer(host, detector, "animal", *args, **options)
    with steering as made, following(host, "record", recorder.looks(), recorder), torch.no_grad():
        out = run()
    (texts,) = made.texts
    return out, texts, recorder.seen(BEHIND), made


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@on_both("gpt2", "llama")
def test_the_gate_is_the_clean_models_and_the_edit_is_what_it_says(library, name, kind):
    host, detector = host_on(library, name), detector_on(library, name, kind)
    ids, mask = cases.prompts(name)
    strengths = {"add": 3.0, "project_out": 1.0, "clamp_to_threshold": 1.0}
    for way, run in cases.ways(host).items():
        for how, strength in strengths.items():
            for cached in (True, False):
                out, texts, behind, steering = steered(
                    host, detector, partial(run, ids, mask, cache=cached), strength, how=how
                )
                scores, valid, on, tau = plain_gate(host, detector, "animal", LAYER, out, mask)
                case = (way, how, cached)
                assert off(texts.scores, scores, valid) < 2e-6, case
                assert np.array_equal(texts.steered, on), case
                assert np.array_equal(texts.valid, valid)
                assert 0 < on.sum() < valid.sum()
                assert steering.share == on.sum() / valid.sum()
                after = plain_scores(detector, "animal", LAYER, behind)
                # Keys and values of later layers are steered, the edited layer's own residual is clean.
                gap = np.abs(after - scores)
                assert gap[valid & ~on].max(initial=0) < 1e-4, case
                if how == "project_out":
                    assert np.abs(after[on]).max() < 1e-5, case
                elif how == "clamp_to_threshold":
                    assert after[on].max() <= tau + 1e-5, case
                elif kind == "separator":
                    np.testing.assert_allclose(after[on] - scores[on], strength, atol=1e-4)
                else:
                    assert ((after > scores)[on]).all()


@on_both("gpt2", "llama")
def test_all_is_every_token_and_the_cache_changes_nothing(library, name):
    host, detector = host_on(library, name), detector_on(library, name)
    ids, mask = cases.prompts(name)
    bank = detector.bank
    at, k = bank.index(LAYER), bank.unit("animal")
    v, mean, scale = bank.token.vectors[at, k], bank.token.mean[at], bank.token.scale[at]
    push = 4.0 * scale * v / (v @ v)

    def add(site, h, generation):
        return h + generation.valid_here[..., None] * push

    for run in cases.ways(host).values():
        outs = []
        for cached in (True, False):
            work = partial(run, ids, mask, cache=cached)
            out, texts, _, _ = steered(host, detector, work, 4.0, where="all")
            assert np.array_equal(texts.steered, texts.valid)
            with torch.no_grad():
                _, plain = cases.recorded(host, work, sites=(Site(LAYER, "resid_post"),), edit=add)
            assert torch.equal(out, plain)
            outs.append(out)
            _, _, behind, _ = steered(host, detector, work, how="project_out", where="all")
            x = (behind - mean) / scale
            valid = torch.from_numpy(texts.valid)
            assert (x @ v)[valid].abs().max() < 1e-4
        assert torch.equal(*outs)


@on_both("gpt2", "llama")
def test_nothing_steered_changes_no_token(library, name):
    host, detector = host_on(library, name), detector_on(library, name)
    ids, mask = cases.prompts(name)
    never = torch.zeros_like(ids, dtype=torch.bool)
    for run in cases.ways(host).values():
        work = partial(run, ids, mask, sample=True)
        torch.manual_seed(2)
        with torch.no_grad():
            plain = work()
        for args, options in (((0.0,), {}), ((5.0,), {"where": never}), ((0.0,), {"how": "project_out"})):
            torch.manual_seed(2)
            out, texts, _, _ = steered(host, detector, work, *args, **options)
            assert torch.equal(plain, out)
            assert bool(texts.steered.any()) == ("where" not in options)


@on_both("gpt2", "llama")
def test_a_mask_is_of_the_prompts_columns_and_padding_is_never_steered(library, name):
    host, detector = host_on(library, name), detector_on(library, name)
    ids, mask = cases.prompts(name)
    where = torch.zeros_like(ids, dtype=torch.bool)
    where[:, :3] = True
    where[0, -1] = True
    run = cases.ways(host)["hf"]
    _, texts, _, _ = steered(host, detector, partial(run, ids, mask), 2.0, where=where)
    wanted = texts.valid.copy()
    wanted[:, : ids.shape[1]] &= where.numpy()
    wanted[:, ids.shape[1] :] = False
    assert np.array_equal(texts.steered, wanted)
    assert wanted.any()
    with pytest.raises(ValueError, match=r"where has 2 rows, the batch 3: give one row"):
        steered(host, detector, partial(run, ids, mask), 2.0, where=where[:2])
    # Rows of a padded batch are the rows alone.
    with steer(host, detector, "animal", 6.0), torch.no_grad():
        batch = run(ids, mask)
        for row in range(len(ids)):
            own = mask[row].bool()
            one = run(ids[row : row + 1, own], mask[row : row + 1, own])
            assert torch.equal(batch[row, -cases.NEW :], one[0, -cases.NEW :])


@on_both("gpt2", "llama")
def test_of_several_layers_the_lowest_gate_decides_or_a_twin(library, name):
    host, detector = host_on(library, name), detector_on(library, name)
    ids, mask = cases.prompts(name)
    for run in cases.ways(host).values():
        out, texts, _, _ = steered(host, detector, partial(run, ids, mask), 6.0, layers=[0, 1, 2])
        scores, valid, on, _ = plain_gate(host, detector, "animal", 0, out, mask)
        assert off(texts.scores, scores, valid) < 2e-6
        assert np.array_equal(texts.steered, on)
        # A gate below what is edited is exact too.
        out, texts, _, _ = steered(host, detector, partial(run, ids, mask), 6.0, layers=2, gate=1)
        scores, valid, on, _ = plain_gate(host, detector, "animal", 1, out, mask)
        assert np.array_equal(texts.steered, on)
    for layers in ([0, 1, 2], 1):
        looks = Looking([layers] if isinstance(layers, int) else layers)
        twins = steer(host, detector, "animal", 6.0, layers=layers, gate="twin")
        with twins as steering, following(host, "record", looks.looks(), looks):
            out = steering.generate(ids, mask, max_new_tokens=cases.NEW)
        assert out.shape == (len(ids), ids.shape[1] + cases.NEW)
        for site in looks.sites:
            scores, valid, on, _ = plain_gate(host, detector, "animal", site.layer, out, mask)
            h = torch.cat(looks.parts[site], 1)
            # Steered before this context sees it: the twin's rows are the clean model's.
            twin = plain_scores(detector, "animal", site.layer, h[len(ids) :])
            assert off(twin, scores, valid) < 2e-6
        (texts,) = steering.texts
        scores, valid, on, _ = plain_gate(host, detector, "animal", looks.sites[0].layer, out, mask)
        assert np.array_equal(texts.steered, on)


class Looking(cases.Recorder):
    def __init__(self, layers):
        super().__init__(sites=tuple(Site(at, "resid_post") for at in layers))


@on_both("llama")
def test_every_gate_of_a_twin_is_right_where_gates_of_their_own_are_not(library, name):
    host, detector = host_on(library, name), detector_on(library, name)
    ids, mask = cases.prompts(name)
    wrong = {}
    for gate in ("twin", "lowest"):
        with steer(host, detector, "animal", 8.0, layers=[0, 1, 2], gate=gate) as steering:
            opened = spy(steering)
            out = steering.generate(ids, mask, max_new_tokens=cases.NEW)
        for layer, on in opened.items():
            right = plain_gate(host, detector, "animal", layer, out, mask)[2]
            wrong[gate, layer] = int((torch.cat(on, 1)[: len(ids)].numpy() != right).sum())
    assert not any(wrong["twin", layer] for layer in (0, 1, 2))
    assert not wrong["lowest", 0]
    # The lowest gate is another rule than a gate a layer: it is not what those would say.
    assert wrong["lowest", 1] + wrong["lowest", 2]


def spy(steering):
    """The tokens that each layer edits, pass by pass."""
    opened = {one.site.layer: [] for one in steering.plan.edits}

    def spied(one):
        own = one.edited

        def edited(h, on):
            opened[one.site.layer].append(on)
            return own(h, on)

        return edited

    for one in steering.plan.edits:
        object.__setattr__(one, "edited", spied(one))
    return opened


@on_both("gpt2", "llama")
def test_the_loop_of_our_own_is_the_librarys(library, name):
    host, detector = host_on(library, name), detector_on(library, name)
    ids, mask = cases.prompts(name)
    for strength in (0.0, 6.0):
        with steer(host, detector, "animal", strength):
            out = cases.ways(host)["hf"](ids, mask)
        for gate in ("lowest", "twin"):
            with steer(host, detector, "animal", strength, gate=gate) as steering:
                own = steering.generate(ids, mask, max_new_tokens=cases.NEW)
            assert torch.equal(own, out)
            with steer(host, detector, "animal", strength, gate=gate) as steering:
                drawn = [steering.generate(ids, mask, max_new_tokens=4, seed=1) for _ in range(2)]
                ended = steering.generate(ids, mask, max_new_tokens=9, eos_token_id=int(own[0, ids.shape[1]]))
            assert torch.equal(*drawn)
            assert (ended[0, ids.shape[1] :] == own[0, ids.shape[1]]).all()
    with pytest.raises(RuntimeError, match=r"Steering\.generate: the context is over"):
        steering.generate(ids, mask)


@on_both("llama")
def test_who_watches_sees_what_was_there_when_it_was_entered(library, name):
    host, detector = host_on(library, name), detector_on(library, name)
    ids, mask = cases.prompts(name)
    at, behind = Site(LAYER, "resid_post"), BEHIND
    run = partial(cases.ways(host)["hf"], ids, mask)
    record = {}
    for order in ("watch first", "steer first"):
        recorder = cases.Recorder(sites=(at, behind))
        steering = steer(host, detector, "animal", 5.0, where="all")
        watching = following(host, "record", recorder.looks(), recorder)
        first, second = (watching, steering) if order == "watch first" else (steering, watching)
        with torch.no_grad(), first, second:
            out = run()
        record[order] = recorder, out
    (one, out), (other, same) = record.values()
    assert torch.equal(out, same)
    assert torch.equal(one.seen(behind), other.seen(behind))
    clean = read(host, out[:, :-1], longer(mask, out)[:, :-1], at)
    valid = torch.cat(one.valid, 1)
    assert (one.seen(at) - clean)[valid].abs().max() < 1e-4
    assert torch.equal(other.seen(at), other.seen(behind))


@on_both("llama")
def test_a_monitor_entered_first_has_the_clean_scores_and_one_entered_second_the_steered(library, name):
    host, detector = host_on(library, name), detector_on(library, name)
    ids, mask = cases.prompts(name)
    run = cases.ways(host)["hf"]
    for loop in ("library", "own"):
        hits = {}
        for order in ("watch first", "steer first"):
            steering, watching = steer(host, detector, "animal", -9.0, where="all"), watch(host, detector)
            first, second = (watching, steering) if order == "watch first" else (steering, watching)
            with torch.no_grad(), first as one, second as other:
                made = other if order == "watch first" else one
                out = run(ids, mask) if loop == "library" else made.generate(ids, mask, max_new_tokens=6)
            monitor = one if order == "watch first" else other
            hits[order] = {(h.sequence, h.position) for h in monitor.hits if h.concept == "animal"}
        on = plain_gate(host, detector, "animal", LAYER, out, mask)[2]
        # Positions count from each text's first token, columns from the padding on.
        padding = (mask == 0).sum(1).tolist()
        assert hits["watch first"] == {(int(r), int(c) - padding[r]) for r, c in np.argwhere(on)}
        assert hits["watch first"]
        assert not hits["steer first"]


def test_latents_of_an_sae_are_added_by_what_it_writes():
    host, data = host_on("nnsight", "llama"), word_data(30)
    sae = ReluSAE(tiny.D_MODEL)
    bank = sae_bank(host, data, sae, layers=LAYER)
    detector = calibrate(host, data, bank, deltas=(0.6,))
    ids, mask = cases.prompts("llama")
    run = partial(cases.ways(host)["hf"], ids, mask)
    with pytest.raises(ValueError, match=r"the SAE has no W_dec of shape \[40, 32\]"):
        steered(host, detector, run, 2.0, where="all")
    sae.W_dec = torch.randn(40, tiny.D_MODEL, generator=torch.Generator().manual_seed(5))
    recorder = cases.Recorder(sites=(Site(LAYER, "resid_post"), BEHIND))
    watching = following(host, "record", recorder.looks(), recorder)
    with watching, steer(host, detector, "animal", 2.0, where="all") as steering, torch.no_grad():
        run()
    latent = bank.token.latents[int(detector.tail.chosen_unit[detector.concepts.index("animal")])]
    valid = torch.from_numpy(steering.texts[0].valid)
    change = recorder.seen(BEHIND) - recorder.seen(Site(LAYER, "resid_post"))
    torch.testing.assert_close(change[valid], (2.0 * sae.W_dec[latent]).expand(int(valid.sum()), -1))
    for how in ("project_out", "clamp_to_threshold"):
        with pytest.raises(ValueError, match=rf"how='{how}' with latents of an SAE: no straight line"):
            steered(host, detector, run, how=how, where="all")


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_plain_hooks_are_the_context(name):
    host, detector = host_on("transformer_lens", name), detector_on("transformer_lens", name)
    ids, mask = cases.prompts(name)
    bridge, run = host.model, cases.ways(host)["bridge"]
    valid = mask.bool() & ~torch.isin(ids, torch.tensor(sorted(host.reader.encode.special)))
    never = torch.zeros_like(ids, dtype=torch.bool)
    for options in ({}, {"where": "all"}, {"how": "project_out", "strength": 1.0}, {"layers": [1, 2]}):
        options = {"strength": 5.0, **options}
        for own in ({}, {"valid": valid}):
            hooks = steering_hooks(host, detector, "animal", **options, **own)
            for cached in (True, False):
                with steer(host, detector, "animal", **options):
                    out = run(ids, mask, cache=cached)
                with bridge.hooks(fwd_hooks=hooks):
                    assert torch.equal(run(ids, mask, cache=cached), out), (options, own, cached)
            row = out[:1, mask[0].argmax() :]
            if own:
                hooks = steering_hooks(host, detector, "animal", **options)
            _, cache = bridge.run_with_cache(row)
            with bridge.hooks(fwd_hooks=hooks):
                _, edited = bridge.run_with_cache(row)
            change = (edited["blocks.1.hook_out"] - cache["blocks.1.hook_out"])[0].norm(dim=-1)
            on = plain_gate(host, detector, "animal", LAYER, row, torch.ones_like(row))[2][0]
            if options.get("where") != "all":
                assert np.array_equal(change[: len(on)].numpy() > 1e-3, on)
    hooks = steering_hooks(host, detector, "animal", 5.0, where=never)
    with bridge.hooks(fwd_hooks=hooks):
        assert torch.equal(run(ids, mask), run(ids, mask))


@on_both("llama")
def test_everything_is_off_behind_the_context(library, name):
    from interrupts import state

    host, detector = new_host(library, name, progress=False), detector_on(library, name)
    ids, mask = cases.prompts(name)
    before = state(host)
    run = cases.ways(host)["hf"]
    for error in (ZeroDivisionError, KeyboardInterrupt):

        def fail(h, generation, error=error):
            if generation.step == 2:
                raise error("inside")

        with (
            pytest.raises(BaseException, match="inside"),
            steer(host, detector, "animal", 2.0),
            following(host, "fail", {BEHIND: fail}, cases.Recorder()),
        ):
            run(ids, mask)
        assert state(host) == before
    with torch.no_grad():
        plain = run(ids, mask)
        with steer(host, detector, "animal", 2.0) as steering:
            run(ids, mask)
        assert torch.equal(run(ids, mask), plain)
    assert state(host) == before
    assert len(steering.texts) == 1


def test_bad_input_is_refused_with_value_expectation_and_fix():
    host, detector = host_on("nnsight", "llama"), detector_on("nnsight", "llama")
    ids, mask = cases.prompts("llama")
    run = cases.ways(host)["hf"]

    def asked(match, *args, error=ValueError, of=detector, **options):
        with pytest.raises(error, match=match), steer(host, of, *args, **options):
            run(ids, mask)

    asked(r"strength is nan, not a finite number", "animal", float("nan"))
    asked(r"where is the text 'everywhere', not 'superactivators' or 'all'", "animal", where="everywhere")
    asked(r"where is a Tensor of float32 \[2, 3\], not a tensor of bool", "animal", where=torch.zeros(2, 3))
    asked(r"how is the text 'addd', .* did you mean 'add'", "animal", how="addd")
    asked(r"'animl'.*did you mean 'animal'", "animl", 1.0)
    asked(r"strength is 2: with how='project_out' it is the share", "animal", 2.0, how="project_out")
    asked(r"no layer 7: nearest is 2", "animal", 1.0, layers=7)
    asked(r"layers is empty: name at least one block", "animal", 1.0, layers=[])
    asked(r"gate is block 2, behind the lowest edited block 1", "animal", 1.0, gate=2)
    asked(r"gate is the text 'first', not 'lowest' or 'twin'", "animal", 1.0, gate="first")
    asked(r"gate='twin' runs each row twice.*call generate of what", "animal", 1.0, gate="twin")
    other = detector_on("nnsight", "gpt2")
    asked(r"the bank was fitted on .* the attached model is", "animal", 1.0, of=other)
    tail = dataclasses.replace(detector.tail, thresholds=np.full_like(detector.tail.thresholds, np.inf))
    without = dataclasses.replace(detector, tail=tail)
    asked(r"'animal' has no threshold at block 1 \(inf\).*Use where='all'", "animal", 1.0, of=without)
    asked(r"no threshold", "animal", 1.0, of=without, where="all", how="clamp_to_threshold")
    twice = pytest.raises(ValueError, match=r"is under steer already: leave that context first")
    with twice, steer(host, detector, "animal"), steer(host, detector, "food"):
        run(ids, mask)
    with steer(host, without, "animal", 1.0, where="all"):
        run(ids, mask)
    broken = dataclasses.replace(
        detector.bank,
        token=dataclasses.replace(detector.bank.token, mean=detector.bank.token.mean * torch.nan),
    )
    asked(
        r"scores of 'animal' at block 1 are NaN or Inf in \d+ tokens",
        "animal",
        1.0,
        of=dataclasses.replace(detector, bank=broken),
    )
    both = pytest.raises(ValueError, match="steer: BertForMaskedLM attends in both directions")
    with both, steer(host_on("transformer_lens", "bert"), detector, "animal"):
        pass
