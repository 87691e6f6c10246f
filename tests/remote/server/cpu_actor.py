"""NDIF's model actors without CUDA: only the methods that touch a GPU are replaced."""

from __future__ import annotations

import gc
from typing import Any

import ray
from ndif.services.ray.deployments.modeling.base import BaseModelDeployment
from ndif.services.ray.sandbox.model import SandboxModelDeployment
from nnsight.modeling.huggingface import HuggingFaceModel


def _load(actor: Any) -> Any:
    model = HuggingFaceModel.from_model_key(
        actor.model_key, dispatch=True, dtype=actor.dtype_name, device="cpu", **actor.kwargs
    )
    # As ndif does: the server keeps no gradients of parameters.
    model._module.requires_grad_(False)
    return model


def _reset(actor: Any) -> None:
    actor.kill_switch.clear()
    actor.kill_reason = None
    actor.execution_ident = None
    actor.model.interleaver.cancel()
    gc.collect()


class _Trusted(BaseModelDeployment):
    CACHEABLE = False
    load_from_disk = _load
    cleanup = _reset


class _Sandboxed(SandboxModelDeployment):
    CACHEABLE = False
    load_from_disk = _load

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, pool_size=1, **kwargs)

    def cleanup(self) -> None:
        self.discard_sandbox()
        _reset(self)

    async def run(self, request: Any) -> None:
        # Without a database of keys the API trusts every request.
        request.trusted = False
        await super().run(request)


@ray.remote(num_cpus=1, max_restarts=-1)
class TrustedActor(_Trusted):
    """User code runs in the model's own process."""


@ray.remote(num_cpus=1, max_restarts=-1)
class SandboxedActor(_Sandboxed):
    """User code runs in a process of its own, without weights or graph."""
