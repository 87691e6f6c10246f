"""Folders of models with two towers: both hosts read the same half of them."""

import numpy as np
import pytest
import tiny
import tiny_multimodal
import transformers
from torch.testing import assert_close

from sa_plugin.data import Sample
from sa_plugin.host import Site, open_folder

MODELS = {"llava": tiny_multimodal.llava, "mllama": tiny_multimodal.mllama}


@pytest.fixture(scope="module", params=list(MODELS))
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    MODELS[request.param]().save_pretrained(path)
    tiny.tokenizer("llama").save_pretrained(path)
    side = tiny_multimodal.SIDE
    if request.param == "llava":
        crop = {"height": side, "width": side}
        transformers.CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=crop).save_pretrained(path)
    return path


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_both_hosts_read_the_same_numbers(folder, tower):
    ours, theirs = (open_folder(folder, name, tower=tower) for name in ("transformer_lens", "nnsight"))
    assert ours.info.host == "transformer_lens"
    assert ours.info.n_layers == theirs.info.n_layers
    assert ours.info.fingerprint == theirs.info.fingerprint
    sample = Sample("a", "the cat sat", "a") if tower == "text" else tiny.images()[0]
    sites = [Site(layer, "resid_post") for layer in range(ours.info.n_layers)]
    read = []
    for host in (ours, theirs):
        batch = host.batches([sample])[0]
        found = host.read(batch, sites, lambda x: {str(s.layer): x[s] for s in sites})
        read.append({k: value[batch.valid] for k, value in found.items()})
    for k, value in read[0].items():
        assert np.isfinite(value.numpy()).all()
        assert_close(value, read[1][k], rtol=1e-4, atol=1e-4)
