"""Every snippet of docs/nnsight.md runs, in order, on a tiny model; and the traps it names."""

import re
from pathlib import Path

import nnsight
import numpy as np
import pytest
import tiny
import torch
from nnsight import NNsight

from sa_nnsight import accept
from sa_plugin.data import ConceptData, Splits
from sa_plugin.host import Site
from sa_plugin.host import protocol as hosting

PAGE = Path(__file__).resolve().parents[2] / "docs" / "nnsight.md"
WORDS = ("cat", "dog", "sat", "mat", "people", "walk", "home", "night")


@pytest.fixture
def registered(monkeypatch):
    from importlib.metadata import EntryPoint

    points = [
        EntryPoint(name, f"sa_{name}:accept", hosting.ADAPTERS) for name in ("nnsight", "transformer_lens")
    ]
    monkeypatch.setattr(hosting, "entry_points", lambda group: points)


def make_data():
    rng = np.random.default_rng(0)
    words = [list(rng.choice(WORDS, 8)) for _ in range(40)]
    labels = [["animal" if w in ("cat", "dog") else None for w in row] for row in words]
    return ConceptData.from_words(words, labels, splits=Splits(seed=1))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_snippet_runs(tmp_path, registered):
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(snippets) == 8
    folder = tmp_path / "tiny"
    tiny.hf_model("gpt2").save_pretrained(folder)
    tiny.tokenizer("gpt2").save_pretrained(folder)
    names = {"folder": folder, "data": make_data()}
    for k, snippet in enumerate(snippets):
        # nnsight reads a trace's source from the file that the code says it is in.
        file = tmp_path / f"snippet_{k}.py"
        file.write_text(snippet)
        exec(compile(snippet, str(file), "exec"), names)
    check_results(names)


def check_results(names):
    """What the page says of each snippet's result."""
    host, detector, sample = (names[name] for name in ("host", "detector", "sample"))
    hits = [hit.position for hit in detector.find(sample)]
    assert names["tail"][0].nonzero()[:, 0].tolist() == hits
    assert not names["found"].requires_grad
    assert names["attribution"].shape == names["tail"].shape[1:]
    assert float(names["attribution"].abs().max()) > 0
    assert names["patched"].ndim == 0
    assert names["without_heads"].shape[-1] == host.info.d_model
    clean, broken = (objective_of(names, names[which]) for which in ("clean", "broken"))
    assert clean != broken
    assert float(names["patched"]) not in (clean, broken)


def objective_of(names, inputs):
    model, goal = names["model"], names["goal"]
    with torch.no_grad(), model.trace(**inputs) as tracer:
        value = nnsight.save(names["trace_ops"].goal_mean(model.get(goal.path), goal))
        tracer.stop()
    return float(value)


class TestTraps:
    """nnsight still behaves as the page says; when one of these fails, mend the page."""

    def test_a_wrapper_runs_locally_whatever_remote_says(self):
        model = NNsight(tiny.hf_model("gpt2"))
        ids = torch.tensor([[1, 2, 3]])
        try:
            with model.trace(ids, remote=True):
                here = nnsight.save(model.transformer.h[0].output)
        except TypeError:
            return
        assert here.shape == (1, 3, tiny.D_MODEL)

    def test_reading_backwards_is_an_error(self):
        model = tiny.nnsight_model("gpt2")
        error = nnsight.intervention.interleaver.OutOfOrderError
        with pytest.raises(error), model.trace(torch.tensor([[1, 2, 3]])):
            nnsight.save([model.transformer.h[k].output for k in (1, 0)])

    def test_the_block_must_stand_on_its_own_lines(self, tmp_path):
        file = tmp_path / "one_line.py"
        file.write_text("with model.trace(ids): out = nnsight.save(model.output)\n")
        names = {"model": tiny.nnsight_model("gpt2"), "nnsight": nnsight, "ids": torch.tensor([[1, 2]])}
        with pytest.raises(ValueError, match="line"):
            exec(compile(file.read_text(), str(file), "exec"), names)

    def test_the_adapter_keeps_names_of_the_caller(self):
        """Names bound in a block become the caller's: the adapter's own stay in its functions."""
        host = tiny.nnsight_host("gpt2")
        tracer, found, taps = "mine", "mine", "mine"
        batch = host.batches(tiny.samples())[0]
        site = Site(0, "resid_post")
        host.read(batch, [site], lambda read: {"x": read[site]})
        assert (tracer, found, taps) == ("mine", "mine", "mine")

    def test_a_pattern_cannot_be_written(self):
        host = tiny.nnsight_host("gpt2")
        for point in ("resid_pre", "resid_post", "z", "mlp_out"):
            host.check_writable(host.hook_name(Site(1, point)))
        name = host.hook_name(Site(1, "pattern"))
        assert name == "transformer.h.1.attn.output[1]"
        with pytest.raises(
            ValueError, match=r"attn\.output\[1\]' of \w+ fires and changes nothing: an edit there"
        ):
            host.check_writable(name)
        assert not host.hook_changes_output(name)
        with pytest.raises(ValueError, match="names no place: give the path of a module"):
            host.check_writable("transformer")
        with pytest.raises(ValueError, match=r"has no module 'transformer\.x'"):
            host.check_writable("transformer.x.output")

    def test_bert_spells_output_with_an_e(self):
        host = tiny.nnsight_host("bert")
        assert host.hook_name(Site(0, "z")).endswith("attention.E_output.dense.input")
        host.check_writable(host.hook_name(Site(0, "mlp_out")))

    def test_attach_remote_of_a_wrapper_is_refused(self):
        with pytest.raises(TypeError, match="NNsight has no remote side"):
            accept(NNsight(tiny.hf_model("gpt2")), remote=True)
