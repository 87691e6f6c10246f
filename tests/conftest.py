"""Shared fixtures, and shape checks of every annotated function of the packages under test."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "2")

import jaxtyping
import shape_checks

# The hook writes this name in front of every function.
jaxtyping.jaxtyped = shape_checks.jaxtyped
PACKAGES = ["sa_plugin", "sa_transformer_lens", "sa_nnsight", "sa_interp_engine"]
jaxtyping.install_import_hook(PACKAGES, "beartype.beartype")

import pytest  # noqa: E402
import tiny  # noqa: E402


@pytest.fixture(scope="session", params=tiny.ARCHITECTURES)
def architecture(request):
    return request.param


@pytest.fixture(scope="session")
def tiny_bridge(architecture):
    """A TransformerBridge of each architecture; leave it as you found it."""
    return tiny.bridge(architecture)


@pytest.fixture(scope="session")
def tiny_host(tiny_bridge):
    """A host of each architecture."""
    from sa_transformer_lens import accept

    return accept(tiny_bridge)


@pytest.fixture(scope="session", params=tiny.PRE_NORM)
def pre_norm_host(request):
    return tiny.host(request.param)


@pytest.fixture(scope="session")
def tiny_gpt2():
    return tiny.host("gpt2")


@pytest.fixture(scope="session")
def tiny_bert():
    return tiny.host("bert")


@pytest.fixture
def tiny_samples():
    return tiny.samples()
