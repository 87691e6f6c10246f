"""Interrupts at chosen moments, and all that a model and its thread must be afterwards.

CPython handles signals in three places: where a function of Python begins or goes on, behind a call
of a function of C, and where a loop jumps back. `sys.setprofile` is told of the first two, so that
counting them chooses a moment exactly, and every moment is one at which Ctrl-C can fall.
"""

import sys
import warnings
from collections import Counter
from functools import cache

import numpy as np
import torch
from both_hosts import new_host
from word_data import word_data

from sa_plugin.attribution import attribute, objective
from sa_plugin.concepts import fit
from sa_plugin.detection import calibrate
from sa_plugin.generation import watch
from sa_plugin.heads import Intervention, ablate_heads
from sa_plugin.host import HOOKS, InterruptedCallWarning, Site, Turns, attach, check, hooks_on
from sa_plugin.scores import score
from sa_plugin.statistics import Resampling

MOMENTS = ("call", "c_return")
# Files in which things are put on a model and taken off; most moments fall elsewhere.
SEAMS = (
    "host/turns.py",
    "host/adapter.py",
    "generation/running.py",
    "generation/monitor.py",
    "host/local.py",
    "sa_nnsight/edits.py",
    "sa_nnsight/measure.py",
    "sa_nnsight/places.py",
    "sa_transformer_lens/passes.py",
    "sa_transformer_lens/prefix.py",
    "/contextlib.py",
    "nnsight/tracing/tracer.py",
    "nnsight/intervention/tracer.py",
    "nnsight/intervention/interleaver.py",
    "transformer_lens/hook_points.py",
    "transformer_lens/model_bridge/bridge_core.py",
    "torch/utils/hooks.py",
    "torch/autograd/grad_mode.py",
)


def interrupted(work, moment, again=None):
    """Whether `work` was still running at a moment, and was interrupted there.

    Args:
        work: To call.
        moment: From 1.
        again: A second interrupt, at this moment of the recovery from the first.
    """
    recover = Turns.recover

    def recover_interrupted(turns, turn):
        Turns.recover = recover
        sys.setprofile(_raising_at(again))
        recover(turns, turn)

    if again is not None:
        Turns.recover = recover_interrupted
    sys.setprofile(_raising_at(moment))
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
        Turns.recover = recover
    return False


def _raising_at(moment):
    seen = 0

    def watch(frame, event, given):
        nonlocal seen
        if event in MOMENTS:
            seen += 1
            if seen == moment:
                raise KeyboardInterrupt

    return watch


def moments_of(work):
    """The number of moments of some work, and those of them that fall into SEAMS."""
    seen, seams = 0, []

    def watch(frame, event, given):
        nonlocal seen
        if event in MOMENTS:
            seen += 1
            if frame.f_code.co_filename.endswith(SEAMS):
                seams.append(seen)

    sys.setprofile(watch)
    try:
        work()
    finally:
        sys.setprofile(None)
    return seen, seams


def state(host):
    """All of a model and its thread but the numbers: equal before and after."""
    whole = host.model if isinstance(host.model, torch.nn.Module) else host.places.root
    hooks = Counter(
        (type(hook.module).__name__, hook.kind, getattr(hook.function, "__qualname__", "?"))
        for hook in hooks_on(whole)
    )
    named = list(whole.named_modules())
    beside = {
        (name, kept): len(getattr(m, kept)) for name, m in named for kind in HOOKS.values() for kept in kind
    }
    lists = {name: (len(m.fwd_hooks), len(m.bwd_hooks)) for name, m in named if hasattr(m, "fwd_hooks")}
    configs = {
        name: config._attn_implementation
        for name, module in named
        if (config := getattr(module, "config", None)) is not None and hasattr(config, "_attn_implementation")
    }
    flags = {name: (module.training, getattr(module, "_stop_at_layer_idx", None)) for name, module in named}
    weights = {
        name: (p.requires_grad, p.grad is None, float(p.detach().double().sum()))
        for name, p in whole.named_parameters()
    }
    return {
        "hooks": hooks,
        "kept beside hooks": beside,
        "hook lists": lists,
        "attention": configs,
        "flags": flags,
        "weights": weights,
        "gradients": torch.is_grad_enabled(),
        "trace function": sys.gettrace(),
        "turns": len(host.turns.open),
        "wrapped": [
            name
            for name in ("generate", "generate_stream")
            for m in (whole, host.places.root)
            if name in vars(m)
        ],
        "hooks of all modules": len(torch.nn.modules.module._global_forward_hooks),
        "library": _library(host),
    }


def _library(host):
    if host.info.host == "nnsight":
        from nnsight.tracing import tracer

        run = host.model.interleaver
        return [getattr(tracer._local, "depth", 0), len(run.mediators), run.interleaving, run.batcher]
    cfg = host.model.cfg
    return [getattr(cfg, name, None) for name in ("use_attn_result", "use_split_qkv_input", "use_attn_in")]


def differences(one, two):
    """Names of what differs."""
    return [name for name in one if one[name] != two[name]]


def halved(z):
    """An edit of z."""
    return z * 0.5


def edit(*layers):
    """Edits of some layers, as `host.edited` takes them."""
    return {Site(layer, "z"): halved for layer in layers}


class Case:
    """A model of its own with two hosts, what can be asked of it, and what is right."""

    def __init__(self, library):
        self.host = new_host(library, "llama", progress=False)
        self.other = attach(self.host.model, progress=False)
        host, data = self.host, word_data(24, documents=12)
        self.data, self.bank = data, fit(host, data, "prototype")
        self.detector = detector = calibrate(host, data, self.bank, deltas=(0.5,))
        sample = data.test.samples[0]
        goal = objective("global", detector=detector, concept=data.concepts[0], sample=sample, host=host)
        common = {"resampling": Resampling(5)}
        every = [(0, 0), (1, 1), (2, 2)]
        self.work = {
            "score": self.scores,
            "ablate": lambda: ablate_heads(host, data, detector, every, **common),
            "pattern": lambda: ablate_heads(
                host, data, detector, every, how=Intervention("pattern"), **common
            ),
            "gradients": lambda: attribute(host, goal, sample, "integrated_gradients", preset="fast"),
            "FullGrad": lambda: attribute(host, goal, sample, "full_grad"),
            "check": lambda: check(host, ["a cat sat", "two dogs ran over there"]),
            "attach": lambda: attach(self.host.model),
            "watch": self.watched,
        }
        if library == "transformer_lens":
            replaced = np.arange(len(goal.mask[0])) % 2 == 1
            self.work["explain"] = lambda: host.explain(goal, sample, replaced, None)
        self.moments = {}
        self.right, self.before = self.scores(), state(host)

    def watched(self):
        """A generation under a monitor, of the module that both libraries run."""
        ids = torch.tensor([[0, 5, 9, 12]])
        with watch(self.host, self.detector) as monitor:
            self.host.places.root.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False
            )
        return monitor

    def scores(self, host=None):
        """What the next call of some host finds."""
        return score(host or self.host, self.data, self.bank).scores.copy()

    def moment(self, name, rng):
        """A moment of some work: every other one in a seam."""
        if name not in self.moments:
            # What is kept after a first run (sources, caches) is no trace of an interrupt.
            self.work[name]()
            self.moments[name] = moments_of(self.work[name])
        number, seams = self.moments[name]
        return rng.choice(seams) if rng.random() < 0.5 else rng.randint(1, number)

    def interrupt(self, name, moment, again=None):
        """Interrupt some work, and perhaps the recovery from that.

        Returns:
            Whether it was, whether the next call had to clean up, and names of what is not as before
            after it.
        """
        hit = interrupted(self.work[name], moment, again)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            # Hosts of the same model take turns.
            scores = self.scores(self.other if moment % 2 else self.host)
        self.said = [str(one.message) for one in said if one.category is InterruptedCallWarning]
        cleaned = any(issubclass(one.category, InterruptedCallWarning) for one in said)
        wrong = differences(self.before, state(self.host))
        return hit, cleaned, wrong + ["scores"] * (not np.array_equal(scores, self.right))


@cache
def case_on(library):
    """The case of a library, made once; an interrupted model is as it was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Case(library)
