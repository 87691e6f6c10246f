"""A monitor finds, step by step, what the detector finds in the finished text."""

import dataclasses
import io
import re
import warnings
from collections import Counter

import generation_cases as cases
import numpy as np
import pytest
import tiny
import torch
from both_hosts import host_on, new_host, on_both
from interrupts import state

from sa_plugin import watch
from sa_plugin.detection import Detector
from sa_plugin.generation import OtherTokensWarning
from sa_plugin.scores import score
from sa_plugin.statistics import Promise

NEAR = 1e-4
"""Of a score's deviation: so near a threshold two ways of computing it may decide differently."""


def marks(found):
    """(sequence, position, concept) of SuperActivators or hits."""
    return {(int(str(getattr(one, "sample", one)).split()[-1]), one.position, one.concept) for one in found}


def of_hits(hits):
    return {(hit.sequence, hit.position, hit.concept) for hit in hits}


def near_threshold(host, detector, rows):
    """Which (sequence, position, concept) have a score within `NEAR` deviations of the threshold."""
    table = score(host, rows, detector.bank)
    at = detector.token_scores(table)
    close = np.abs(at - detector.tail.chosen_threshold) <= NEAR * at.std(0)
    where = zip(*np.nonzero(close), strict=True)
    tokens = table.tokens
    return {(int(tokens.sample_of[r]), int(tokens.position[r]), detector.concepts[k]) for r, k in where}


def without_last(found, rows):
    """The token chosen last is never run."""
    return {one for one in found if one[1] < len(rows[one[0]]) - 1}


@on_both("gpt2", "llama")
def test_flags_are_those_of_one_pass_over_the_finished_ids(library, name):
    host, detector = host_on(library, name), cases.detector_on(library, name)
    ids, mask = cases.prompts(name)
    undecided = 0
    for way, run in cases.ways(host).items():
        for cache, sample in ((True, True), (False, False)):
            torch.manual_seed(3)
            plain = run(ids, mask, cache=cache, sample=sample)
            torch.manual_seed(3)
            with watch(host, detector) as monitor:
                out = run(ids, mask, cache=cache, sample=sample)
            assert torch.equal(plain, out), way
            rows = cases.finished(out, mask)
            right = without_last(marks(detector.find(rows)), rows)
            got = marks(monitor.superactivators())
            near = near_threshold(host, detector, rows)
            assert got ^ right <= near, (way, cache, sample, (got ^ right) - near)
            undecided += len(got ^ right)
            assert right
            assert monitor.n_sequences == len(ids)
    assert undecided == 0


@on_both("gpt2", "llama")
def test_hits_are_those_of_a_plain_loop_that_does_not_look_ahead(library, name):
    host = new_host(library, name, progress=False)
    ids, mask = cases.prompts(name)
    # Tokens that become sinks: one in the middle of the prompts, one right behind what stands first.
    embedding = dict(host.places.root.named_modules())[_embedding(host)]
    with torch.no_grad():
        embedding.weight[ids[1, 5]] *= 300
        embedding.weight[ids[0, -1]] *= 300
    data = cases.word_data(30)
    detector = cases.calibrate(host, data, cases.fit(host, data, "separator"), deltas=(0.9,))
    run = next(iter(cases.ways(host).values()))
    with watch(host, detector) as monitor:
        out = run(ids, mask)
    rows = cases.finished(out, mask)
    told, sinks = plain_loop(host, detector, rows)
    assert sinks
    assert of_hits(monitor.hits) == told
    assert without_last(marks(detector.find(rows)), rows) == marks(monitor.superactivators())
    # Hits come in the order in which tokens were run, and say where.
    assert [hit.step for hit in monitor.hits] == sorted(hit.step for hit in monitor.hits)
    for hit in monitor.hits:
        assert rows[hit.sequence][hit.position] == hit.token
        generated = hit.position - (len(rows[hit.sequence]) - cases.NEW)
        assert hit.step == max(generated + 1, 0)
        assert hit.score >= hit.threshold == detector.threshold[hit.concept]
        assert hit.p_value is None


def _embedding(host):
    root = host.places.root
    sizes = {n: m for n, m in root.named_modules() if isinstance(m, torch.nn.Embedding)}
    return max(sizes, key=lambda n: sizes[n].num_embeddings)


def plain_loop(host, detector, rows):
    """Token by token, with nothing but what stands before it."""
    bank, special = detector.bank, host.reader.encode.special
    layers, _, drops_first = bank.sinks_on(host.info)
    found, sinks = set(), 0
    for n, row in enumerate(rows):
        inputs = {
            "input_ids": torch.tensor([row]),
            "attention_mask": torch.ones(1, len(row), dtype=torch.long),
        }
        read = host.passes.read(host.passes.inputs(inputs), [(at, "resid_post") for at in bank.layers])
        norms = {at: [] for at in layers}
        for t, token in enumerate(row[:-1]):
            if token in special:
                continue
            sink = False
            for at in layers:
                norm = float(read[at, "resid_post"][0, t].norm())
                norms[at].append(norm)
                sink |= norm > 10 * sorted(norms[at])[(len(norms[at]) - 1) // 2]
            sinks += sink
            if sink or (drops_first and len(norms[layers[0]]) == 1):
                continue
            for concept in detector.concepts:
                choice = detector.choice(concept)
                k = bank.layers.index(choice.layer)
                x = (read[choice.layer, "resid_post"][0, t] - bank.token.mean[k]) / bank.token.scale[k]
                v = bank.token.vectors[k, bank.units.index(choice.unit)]
                if float(x @ v) >= choice.threshold:
                    found.add((n, t, concept))
    return found, sinks


@on_both("llama")
def test_a_hit_ends_its_sequence_one_token_later(library, name):
    host, detector = host_on(library, name), cases.detector_on(library, name)
    ids, mask = cases.prompts(name)
    for run in cases.ways(host).values():
        told = []
        with watch(host, detector, on_hit=told.append, stop=True, prompt=False) as monitor:
            out = run(ids, mask, new=10, eos=1)
        assert told == list(monitor.hits)
        assert told
        first = {}
        for hit in told:
            first.setdefault(hit.sequence, hit.step)
        width = ids.shape[1]
        for row, step in first.items():
            # The token that was chosen when the score was seen is the last; fillers follow it.
            assert set(out[row, width + step + 1 :].tolist()) <= {1}
            assert all(hit.step <= step + 1 for hit in told if hit.sequence == row)
        with watch(host, detector, stop=detector.concepts[0], prompt=False) as only:
            run(ids, mask, new=10, eos=1)
        assert only.hits


def test_one_transfer_a_step_whatever_the_number_of_concepts(monkeypatch):
    host = host_on("nnsight", "llama")
    ids, mask = cases.prompts("llama")
    run = cases.ways(host)["hf"]
    few, many = (cases.many_concepts(host, n) for n in (2, 100))
    assert len(set(many.layer.values())) > 1
    counts = Counter()

    def counting(method):
        own = getattr(torch.Tensor, method)

        def counted(self, *args, **kwargs):
            counts[method] += 1
            return own(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, method, counted)

    for method in ("cpu", "item", "tolist", "__bool__", "__int__", "__float__", "nonzero"):
        counting(method)

    def moved(detector):
        counts.clear()
        if detector is None:
            run(ids, mask)
        else:
            with watch(host, detector):
                run(ids, mask)
        return Counter(counts)

    plain, with_few, with_many = moved(None), moved(few), moved(many)
    assert with_many == with_few
    extra = with_few - plain
    # One a step; at the end what was run is held against what came out.
    assert extra["cpu"] == cases.NEW + 2
    assert sum(extra.values()) - extra["cpu"] <= 2 + len(ids)


@on_both("llama")
def test_a_loop_of_ones_own_is_fed(library, name):
    host, detector = host_on(library, name), cases.detector_on(library, name)
    ids, mask = cases.prompts(name)
    run = cases.ways(host)["hf"]
    with watch(host, detector) as right:
        out = run(ids, mask)
    whole = torch.cat([mask, torch.ones(len(mask), cases.NEW - 1, dtype=mask.dtype)], 1)
    inputs = host.passes.inputs({"input_ids": out[:, :-1], "attention_mask": whole})
    with watch(host, detector) as monitor:
        read = host.passes.read(inputs, [(site.layer, site.point) for site in monitor.sites])
        width, told = ids.shape[1], []
        for start, stop in ((0, width), *((k, k + 1) for k in range(width, width + cases.NEW - 1))):
            new = {site.layer: read[site.layer, site.point][:, start:stop] for site in monitor.sites}
            told += monitor.feed(new, out[:, start:stop], past=start, mask=whole[:, start:stop])
    assert of_hits(told) == of_hits(monitor.hits) == of_hits(right.hits)
    # Fed tokens alone are known.
    assert marks(monitor.superactivators()) == marks(right.superactivators())


def test_a_trace_of_ones_own_scores_beside_the_model():
    import nnsight

    from sa_nnsight.trace_ops import seen
    from sa_nnsight.trace_setup import watched

    host, detector = host_on("nnsight", "llama"), cases.detector_on("nnsight", "llama")
    model, (ids, mask) = host.model, cases.prompts("llama")
    given = {"max_new_tokens": cases.NEW, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
    layers = watched(detector, host)
    with watch(host, detector) as right:
        plain = cases.ways(host)["hf"](ids, mask)
    with torch.no_grad(), model.generate(input_ids=ids, attention_mask=mask, **given) as tracer:
        steps = nnsight.save([])
        for _ in tracer.iter[: cases.NEW]:
            steps.append([seen(model.get(one.path), one) for one in layers])
        out = tracer.result.save()
    assert torch.equal(out, plain)
    whole = torch.cat([mask, torch.ones(len(mask), cases.NEW, dtype=mask.dtype)], 1)
    with watch(host, detector) as monitor:
        past = 0
        for step in steps:
            stop = past + step[0].shape[1]
            numbers = {one.layer: value for one, value in zip(layers, step, strict=True)}
            monitor.feed(numbers, out[:, past:stop], past=past, mask=whole[:, past:stop], scored=True)
            past = stop
    assert of_hits(monitor.hits) == of_hits(right.hits)
    with (
        pytest.raises(ValueError, match=r"have 32 numbers a token, a scored step \d: give what"),
        watch(host, detector) as monitor,
    ):
        monitor.feed({one.layer: torch.zeros(3, 1, 32) for one in layers}, ids[:, :1], scored=True)


def test_hits_carry_p_values_where_the_detector_has_a_promise():
    host, data = host_on("nnsight", "gpt2"), cases.word_data(30)
    ids, mask = cases.prompts("gpt2", 2)
    bank = cases.fit(host, data, "prototype")
    words = ("sat", "ran", "tall", "house", "river", "blue")
    guard = [" ".join(words[(k * j + j) % 6] for j in range(4, 9)) for k in range(40)]
    guard = [f"{text} {k}" for k, text in enumerate(guard)]
    detector = cases.calibrate(host, data, bank, promise=Promise("document", 0.5), guard=guard)
    run = cases.ways(host)["hf"]
    with watch(host, detector) as monitor:
        run(ids, mask)
    assert monitor.hits
    assert {hit.p_value for hit in monitor.hits} - {None}
    for hit in monitor.hits:
        whole = len(cases.finished(ids, mask)[hit.sequence]) + cases.NEW
        if hit.p_value is None:
            assert whole > detector.guard.lengths[1]
            continue
        right = detector.p_values(hit.concept, [hit.score])[0]
        assert hit.p_value == right >= 1 / 41
    assert "the chance that a document like the guard's" in " ".join(str(monitor).split())
    assert {"score", "margin", "p"} == set(monitor.table()["measure"])


@on_both("llama")
def test_it_shows_itself(library, name):
    host, detector = host_on(library, name), cases.detector_on(library, name)
    ids, mask = cases.prompts(name)
    with watch(host, detector) as monitor:
        cases.ways(host)["hf"](ids, mask)
        cases.ways(host)["hf"](ids[:1], mask[:1])
    assert monitor.n_sequences == 4
    assert re.match(r"4 sequences, \d+ tokens, \d+ hits: ", monitor.headline())
    assert "by the exact rule on the texts as they are 0 of these" in " ".join(str(monitor).split())
    table = monitor.table()
    assert set(table["measure"]) == {"score", "margin"}
    assert len(table) == 2 * len(monitor.hits)
    html = monitor._repr_html_()
    assert "SuperActivators" in html
    assert "<mark" in html
    assert "not that the text is about the concept" in html
    assert monitor.to_dict()["hits"][0]["concept"] in detector.concepts
    assert monitor.plot().axes


def test_the_live_line_says_what_was_seen(monkeypatch):
    import tqdm.auto

    from sa_plugin import attach

    host = attach(host_on("nnsight", "llama").model, progress=True)
    said = io.StringIO()
    real = tqdm.auto.tqdm
    monkeypatch.setattr(
        "sa_plugin.generation.monitor.tqdm", lambda *a, **k: real(*a, **k | {"file": said, "mininterval": 0})
    )
    ids, mask = cases.prompts("llama")
    with watch(host, cases.detector_on("nnsight", "llama")):
        cases.ways(host)["hf"](ids, mask)
    assert re.search(r"watched \d+ tokens, \d+ hits: \w+ [\d.]+ at '", said.getvalue())


@on_both("llama")
def test_bad_input_is_refused_with_value_expectation_and_fix(library, name):
    host, detector = host_on(library, name), cases.detector_on(library, name)
    other = cases.detector_on(library, "gpt2")
    ids, mask = cases.prompts(name)
    run = cases.ways(host)["hf"]

    def refused(error, match, work=lambda: run(ids, mask), on=detector, **options):
        with pytest.raises(error, match=match), watch(host, on, **options):
            work()

    refused(ValueError, "bank was fitted on .*attached model is .*Fit again", on=other)
    refused(ValueError, "'anmal' is not among the concepts: did you mean 'animal'", concepts=["anmal"])
    refused(ValueError, "concepts is empty: name at least one", concepts=[])
    refused(ValueError, "'food'.*concepts that are watched", concepts=["animal"], stop="food")
    refused(TypeError, "stop", stop=3)
    infinite = dataclasses.replace(detector, tail=_without_threshold(detector.tail))
    refused(
        ValueError, r"threshold of 'animal' is inf, which no score reaches.*concepts=\['food'\]", on=infinite
    )
    refused(RuntimeError, "watch: nothing was generated inside: call generate", lambda: None)

    def twice():
        with watch(host, detector):
            pass

    refused(ValueError, "is under watch already: leave that context first", twice)
    refused(
        ValueError, r"generate\(num_beams=2\) cannot be followed: beams", lambda: run(ids, mask, num_beams=2)
    )
    # Padding that the model was not told of; transformers guesses it where it is no end of a text.
    refused(
        ValueError,
        r"row \d of the prompt begins with '<eos>' more than once.*attention_mask=",
        lambda: run(ids, None, eos=1),
    )
    if library == "transformer_lens":
        own = cases.ways(host)["bridge"]
        refused(ValueError, "of the prompt begins with '<eos>' more than once", lambda: own(ids, None))
    with watch(host, detector) as monitor:
        sites = monitor.sites
        h = {site.layer: torch.zeros(*ids.shape, tiny.D_MODEL) for site in sites}
        with pytest.raises(
            ValueError, match=r"activations lack resid_post of block \d.*given: none.*monitor\.sites"
        ):
            monitor.feed({}, ids)
        with pytest.raises(
            ValueError, match=r"have shape \[3, \d+, 32\], ids \[3, 1\]: give those of the new"
        ):
            monitor.feed(h, ids[:, :1])
        with pytest.raises(ValueError, match="past is 4, and 0 tokens of these sequences were fed"):
            monitor.feed(h, ids, past=4)
        run(ids, mask)
    assert not host.turns.open


def _without_threshold(tail):
    thresholds = tail.thresholds.copy()
    thresholds[:, :, 0] = np.inf
    return dataclasses.replace(tail, thresholds=thresholds)


def test_a_bos_that_the_library_puts_first_is_said():
    host, detector = host_on("transformer_lens", "gpt2"), cases.detector_on("transformer_lens", "gpt2")
    with pytest.warns(OtherTokensWarning, match="'<bos>'.*prepend_bos=False"), watch(host, detector):
        host.model.generate("The cat sat", max_new_tokens=2, verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", OtherTokensWarning)
        with watch(host, detector):
            host.model.generate("The cat sat", max_new_tokens=2, verbose=False, prepend_bos=False)


@on_both("llama")
def test_questions_inside_a_callback_are_not_watched(library, name):
    host, detector = host_on(library, name), cases.detector_on(library, name)
    ids, mask = cases.prompts(name)
    run = cases.ways(host)["hf"]
    with watch(host, detector) as right:
        plain = run(ids, mask)
    asked = []
    with watch(
        host, detector, on_hit=lambda hit: asked.append(detector.find("The cat sat on the mat."))
    ) as monitor:
        out = run(ids, mask)
    assert torch.equal(plain, out)
    assert of_hits(monitor.hits) == of_hits(right.hits)
    assert len(asked) == len(monitor.hits)


@on_both("llama")
def test_an_exception_of_the_callback_ends_it_cleanly(library, name):
    host = new_host(library, name, progress=False)
    detector = dataclasses.replace(cases.detector_on(library, name), host=host)
    assert isinstance(detector, Detector)
    ids, mask = cases.prompts(name)
    before = state(host)

    def fail(hit):
        raise KeyboardInterrupt("enough")

    for run in cases.ways(host).values():
        with pytest.raises(BaseException, match="enough"), watch(host, detector, on_hit=fail):
            run(ids, mask)
        assert state(host) == before
