"""Games on tiny random models with a detector's objectives, and a model with a planted concept."""

import warnings
from functools import cache
from zlib import crc32

import numpy as np
import tiny
import torch
from attribution_toy import ManySitesHost

from sa_plugin.attribution import coalition_game, objective
from sa_plugin.concepts import fit
from sa_plugin.data import ConceptData, Splits
from sa_plugin.detection import calibrate
from sa_plugin.host import Site

ANIMALS = ("cat", "dog")
WORDS = (*ANIMALS, "sat", "mat", "people", "walk", "home", "night", "the", "on")
BOTH = ("global", "superactivator")


def make_data(n=60):
    rng = np.random.default_rng(0)
    words = [list(rng.choice(WORDS, rng.integers(5, 9))) for _ in range(n)]
    labels = [["animal" if w in ANIMALS else None for w in row] for row in words]
    return ConceptData.from_words(words, labels, splits=Splits(seed=1))


def image_data():
    rng = np.random.default_rng(0)
    pixels, masks = [], []
    for k in range(24):
        image = rng.integers(60, 120, (28, 28, 3), dtype=np.uint8)
        mask = np.zeros((28, 28), dtype=bool)
        if k % 2:
            row, column = (7 * rng.integers(0, 4, 2)).tolist()
            mask[row : row + 7, column : column + 7] = True
            image[mask] = (250, 10, 10)
        pixels.append(image)
        masks.append({"red": mask})
    return ConceptData.from_masks(pixels, masks, concepts=["red"], splits=Splits(seed=0))


@cache
def case(name, kind="prototype", layer=1):
    """A host, its data and a detector at one layer."""
    image = name in tiny.VISION
    host = tiny.vision_host(name) if image else tiny.host(name)
    data = image_data() if image else make_data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bank = fit(host, data, kind, layers=[layer])
        return host, data, calibrate(host, data, bank, deltas=(0.3, 0.6))


def chosen(name, **options):
    """The case's host and detector, a sample with a SuperActivator, and its objectives."""
    host, data, detector = case(name, **options)
    concept = data.concepts[0]
    sample = next(s for s in data.test.samples if s.positive and detector.find(s))
    made = [objective(o, detector=detector, concept=concept, sample=sample) for o in BOTH]
    return host, detector, sample, made


def game(name, **options):
    baseline = options.pop("baseline", None)
    host, _, sample, made = chosen(name, **options)
    return coalition_game(host, sample, made, baseline=baseline)


class PlantedHost(ManySitesHost):
    """Words are tokens; animals alone have a first dimension, and blocks mix little."""

    def __init__(self):
        super().__init__()
        self.w_o, self.mlp = 0.2 * self.w_o, 0.2 * self.mlp

    def batches(self, samples, *, batch_tokens=None):
        """One sample each: the blocks' mean would see padding."""
        return [self._batch(samples, [n]) for n in range(len(samples))]

    def input_values(self, batch):
        x = 0.4 * super().input_values(batch)
        animal = torch.isin(batch.inputs["ids"], torch.tensor([crc32(w.encode()) for w in ANIMALS]))
        x[..., 0] = 3.0 * animal * batch.valid
        return x

    def _run(self, x, sites):
        self.rows += len(x)
        got = {}
        for layer in range(max(site.layer for site in sites) + 1):
            z = torch.einsum("btd,hde->bthe", x.mean(1, keepdim=True) + x, self.w_v[layer]).tanh()
            attn = torch.einsum("bthe,hed->btd", z, self.w_o[layer]) + self.b_o[layer]
            mlp = ((x + attn) @ self.mlp[layer]).tanh()
            after = x + attn + mlp
            here = {"resid_pre": x, "z": z, "attn_out": attn, "mlp_out": mlp, "resid_post": after}
            got |= {Site(layer, point): tensor for point, tensor in here.items()}
            x = after
        return {site: got[site] for site in sites}

    def read(self, batch, sites, reduce):
        with torch.no_grad():
            found = self._run(self.input_values(batch), sites)
            return reduce({site: tensor.clone() for site, tensor in found.items()})


@cache
def planted(kind="prototype", n=120):
    """A host with a planted concept, data and a detector at its last block."""
    host, data = PlantedHost(), make_data(n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bank = fit(host, data, kind, layers=[2])
        return host, data, calibrate(host, data, bank, deltas=(0.5, 0.9))
