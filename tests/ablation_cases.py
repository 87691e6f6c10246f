"""What the tests of ablation share: data of words, a fake host that can be edited, samples."""

from contextlib import contextmanager
from copy import copy
from functools import cache
from typing import NamedTuple

import torch
from doubles import added
from fake_host import FakeHost
from word_data import word_data

from sa_plugin.concepts import fit
from sa_plugin.data import ConceptData
from sa_plugin.detection import calibrate
from sa_plugin.host import Site, apply_edit
from sa_plugin.scores import score
from sa_transformer_lens.passes import split_inputs


@cache
def make_data(n=80, documents=40, seed=0):
    return word_data(n, 4, documents=documents, seed=seed)


class EditableFake(FakeHost):
    """The fake host, with edits: its blocks again, because its own loop has no seam."""

    edits: tuple = ()

    @contextmanager
    @added
    def edited(self, edits):
        before = self.edits
        self.edits = (*before, edits)
        try:
            yield
        finally:
            self.edits = before

    def read(self, batch, sites, reduce):
        deepest = max(site.layer for site in sites)
        wanted = {Site(0, "resid_pre")}
        got = {}
        super().read(batch, list(wanted), lambda read: got.update(read) or {})
        x = got[Site(0, "resid_pre")]
        for k in range(deepest + 1):
            got[Site(k, "resid_pre")] = x
            context = x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
            z = torch.einsum("btd,hde->bthe", context, self.w_v[k]).tanh()
            for edits in self.edits:
                z = apply_edit(edits.get(Site(k, "z"), lambda same: same), z)
            attn = torch.einsum("bthe,hed->btd", z, self.w_o[k]) + self.b_o[k]
            mlp = ((x + attn) @ self.mlp[k]).tanh()
            for edits in self.edits:
                mlp = apply_edit(edits.get(Site(k, "mlp_out"), lambda same: same), mlp)
            x = x + attn + mlp
            got |= {Site(k, "z"): z, Site(k, "attn_out"): attn, Site(k, "mlp_out"): mlp}
            got[Site(k, "resid_post")] = x
        return reduce({site: got[site].clone() for site in sites})


class Standard(NamedTuple):
    """The fake host with data, unablated scores and a detector."""

    fake: EditableFake
    data: ConceptData
    scores: object
    detector: object


@cache
def standard():
    fake, data = EditableFake(), make_data()
    bank = fit(fake, data, "lda", layers=[1, 2])
    scores = score(fake, data, bank)
    detector = calibrate(fake, data, bank, scores=scores, deltas=(0.1, 0.3, 0.5))
    return Standard(fake, data, scores, detector)


def residual(host, batch, layer=2):
    return host.read(batch, [Site(layer, "resid_post")], lambda r: {"h": next(iter(r.values()))})["h"]


def with_gradients(host):
    """The host with passes that carry gradients, by the library's own forward pass to the end."""

    def input_values(self, batch):
        return torch.zeros(len(batch.rows))

    def forward_from(self, values, batch, site):
        found = []
        first, others = split_inputs(self.bridge, batch.inputs)
        hook = (f"blocks.{site.layer}.hook_{site.point}", lambda h, hook: found.append(h))
        with self.bridge.hooks(fwd_hooks=[hook]):
            self.bridge(first, **others)
        return found[0]

    made = copy(host)
    methods = {"input_values": input_values, "forward_from": forward_from}
    object.__setattr__(made, "__class__", type("WithGradients", (type(host),), methods))
    return made
