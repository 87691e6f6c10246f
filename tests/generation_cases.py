"""Ways of generating with a tiny model, whatever library runs it, and what is recorded of them."""

from functools import cache

import numpy as np
import tiny
import torch
from both_hosts import host_on
from word_data import WORDS, word_data

from sa_plugin.concepts import ConceptBank, fit
from sa_plugin.data import ConceptData, Splits
from sa_plugin.detection import calibrate
from sa_plugin.generation import following
from sa_plugin.host import Site

DECODERS = ("gpt2", "llama", "gemma2")
SITES = (Site(0, "resid_pre"), Site(1, "resid_post"), Site(2, "attn_out"), Site(2, "resid_post"))
NEW = 6


class Recorder:
    """Keeps what is new of every pass at some sites."""

    def __init__(self, sites=SITES, edit=None):
        self.sites, self.edit = sites, edit
        self.parts, self.valid, self.shapes, self.began = {site: [] for site in sites}, [], [], []
        self.generation = None

    def looks(self):
        return {site: self.looking(site) for site in self.sites}

    def looking(self, site):
        def look(h, generation):
            self.parts[site].append(h[:, generation.new_here :].clone())
            if self.edit is not None:
                return self.edit(site, h, generation)
            return None

        return look

    def begins(self, arguments):
        self.began.append(dict(arguments))

    def passed(self, generation):
        self.valid.append(generation.valid_here[:, generation.new_here :])
        self.shapes.append((generation.step, generation.start, generation.done))

    def stops(self, generation):
        return [False] * generation.rows

    def ends(self, generation):
        self.generation = generation

    def seen(self, site):
        """[row, column, d_model] of all columns that were run."""
        return torch.cat(self.parts[site], 1)


def recorded(host, work, **options):
    """What a recorder saw of some work, and what the work returned."""
    recorder = Recorder(**options)
    with following(host, "record", recorder.looks(), recorder):
        out = work()
    return recorder, out


def prompts(name, n=3):
    """Token ids of texts of unlike length, padded on the left, and their mask."""
    tokenizer = tiny.tokenizer(name)
    rows = [tokenizer(text).input_ids[:12] for text in tiny.TEXTS[:n]]
    width = max(map(len, rows))
    ids = torch.tensor([[tokenizer.eos_token_id] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def ways(host):
    """Functions of ids, mask and settings that generate, by name."""
    model = host.model

    def of_transformers(root):
        def run(ids, mask, *, cache=True, sample=False, new=NEW, eos=None, **more):
            given = {"max_new_tokens": new, "do_sample": sample, "use_cache": cache, "top_k": 0}
            given |= {"pad_token_id": 1, "eos_token_id": eos, **more}
            return root.generate(ids, attention_mask=mask, **given)

        return run

    if host.info.host == "nnsight":

        def traced(ids, mask, *, cache=True, sample=False, new=NEW, eos=None, **more):
            given = {"max_new_tokens": new, "do_sample": sample, "use_cache": cache, "top_k": 0}
            given |= {"pad_token_id": 1, "eos_token_id": eos, **more}
            with model.generate(input_ids=ids, attention_mask=mask, **given) as tracer:
                out = tracer.result.save()
            return out

        return {"nnsight": of_transformers(model), "traced": traced, "hf": of_transformers(model._module)}

    def own(ids, mask, *, cache=True, sample=False, new=NEW, eos=None, **more):
        return model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=new,
            do_sample=sample,
            use_past_kv_cache=cache,
            return_type="tokens",
            verbose=False,
            stop_at_eos=eos is not None,
            eos_token_id=eos,
            **more,
        )

    return {"bridge": own, "hf": of_transformers(model.original_model)}


def finished(out, mask):
    """The finished ids of each row, without padding."""
    whole = torch.cat([mask, torch.ones(len(mask), out.shape[1] - mask.shape[1], dtype=mask.dtype)], 1)
    return [row[shown.bool()].tolist() for row, shown in zip(out, whole, strict=True)]


@cache
def detector_on(library, name):
    """A detector of two concepts that fires often."""
    host, data = host_on(library, name), word_data(30)
    return calibrate(host, data, fit(host, data, "separator"), deltas=(0.6,))


def many_concepts(host, n, layers=None, delta=0.1, seed=0):
    """A detector of n random directions, each chosen at some block."""
    rng = np.random.default_rng(seed)
    names = [f"c{k}" for k in range(n)]
    words = [list(rng.choice(WORDS, 12)) for _ in range(16)]
    labels = [[set(rng.choice(names, max(1, n // 3), replace=False)) for _ in row] for row in words]
    data = ConceptData.from_words(words, labels, concepts=names, splits=Splits(seed=1))
    blocks = range(host.info.n_layers) if layers is None else layers
    vectors = {(c, at): rng.normal(size=host.info.d_model).astype(np.float32) for c in names for at in blocks}
    return calibrate(host, data, ConceptBank.from_vectors(vectors), deltas=(delta,))
