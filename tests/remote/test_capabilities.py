"""What a server lets a request do, and weights recovered where they cannot be read."""

from __future__ import annotations

import models
import pytest
import torch
from transformers import AutoModelForCausalLM

from sa_nnsight import Patience
from sa_nnsight.places import as_linear
from sa_nnsight.remote import attach_remote

pytestmark = pytest.mark.sandboxed


@pytest.fixture(scope="module", params=models.TINY)
def host(request, client):
    return attach_remote(client(models.tiny(request.param)), patience=Patience(timeout=120.0))


def test_capabilities_are_those_of_the_mode(host, mode):
    found = host.capabilities()
    trusted = mode == "trusted"
    assert found.sandboxed == (not trusted)
    assert found.weights == trusted
    assert found.gradients == trusted
    assert found.attention_probabilities == trusted
    assert mode in repr(found)
    if trusted:
        found.require("gradients", "attribution")
    else:
        with pytest.raises(RuntimeError, match="attribution needs gradients, which this sandboxed"):
            found.require("gradients", "attribution")


def test_recovered_projection_is_the_projection(host):
    local = AutoModelForCausalLM.from_pretrained(host.model.repo_id, dtype=torch.float32)
    for layer in (0, host.info.n_layers - 1):
        module = local.get_submodule(host.places.path("o_proj", layer))
        got = host.output_projection(layer)
        torch.testing.assert_close(got.weight.flatten(0, 1).T, as_linear(module).detach(), rtol=0, atol=1e-6)
        if module.bias is None:
            assert got.bias is None
        else:
            torch.testing.assert_close(got.bias, module.bias.detach(), rtol=0, atol=1e-7)
