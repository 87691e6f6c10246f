"""What `attach` says when no adapter takes the model, or an adapter misbehaves."""

import importlib.metadata

import pytest
import tiny
import torch
from fake_host import FakeHost

from sa_plugin.host import attach
from sa_plugin.host import protocol as module


def test_a_host_is_returned_as_it_is():
    host = FakeHost()
    assert attach(host) is host


def test_a_model_nobody_accepts_is_refused_with_what_to_install():
    with pytest.raises(
        TypeError, match=r"model is a builtins\.dict, which no adapter accepts; asked: .*nnsight, trans"
    ):
        attach({})


@pytest.mark.parametrize("make", [lambda: torch.nn.Linear(2, 2), lambda: tiny.hf_model("gpt2")])
def test_a_bare_module_is_told_how_to_wrap_it(make):
    with pytest.raises(TypeError, match=r"a bare module: .*NNsight\(model\).*boot_transformers\(name\)"):
        attach(make())


def test_an_adapter_that_returns_no_host_is_named(monkeypatch):
    class Point(importlib.metadata.EntryPoint):
        def load(self):
            return lambda model, **options: "no host"

    points = [Point("lame", "x:y", module.ADAPTERS)]
    monkeypatch.setattr(module, "entry_points", lambda group: points)
    with pytest.raises(TypeError, match="adapter 'lame' returned a str, not a Host"):
        attach(object())
