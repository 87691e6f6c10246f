"""An architecture of nobody's: found without a dictionary, corrected by one, wrong ones refused."""

import pytest
import tiny
import torch
from nnsight import NNsight
from torch.testing import assert_close

from sa_nnsight import accept
from sa_nnsight.paths import KNOWN, ROLES
from sa_plugin.host import Site

SHORT = ("The cat sat on the mat.",)


def read(host, batch, site):
    return host.read(batch, [site], lambda found: {"x": found[site]})["x"]


class Block(torch.nn.Module):
    """A pre-norm block of nobody's architecture."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.LayerNorm(8), torch.nn.LayerNorm(8)
        self.mix = torch.nn.ModuleDict({"qkv": torch.nn.Linear(8, 24), "o": torch.nn.Linear(8, 8)})
        self.heads, self.ffn = Mixing(self.mix), torch.nn.Linear(8, 8)

    def forward(self, hidden_states):
        x = hidden_states + self.heads(self.first(hidden_states))[0]
        return x + self.ffn(self.second(x))


class Mixing(torch.nn.Module):
    def __init__(self, mix):
        super().__init__()
        self.mix = mix

    def forward(self, x):
        q, k, v = self.mix["qkv"](x).unflatten(-1, (6, 4)).transpose(1, 2).chunk(3, 1)
        logits = (q @ k.transpose(-1, -2) / 2).tril()
        pattern = logits.masked_fill(torch.ones_like(logits).triu(1).bool(), -1e9).softmax(-1)
        return self.mix["o"]((pattern @ v).transpose(1, 2).flatten(2)), pattern


class Own(torch.nn.Module):
    def __init__(self, vocabulary=400):
        super().__init__()
        self.words = torch.nn.Embedding(vocabulary, 8)
        self.stack = torch.nn.ModuleList([Block(), Block()])

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        x = self.words(input_ids)
        for block in self.stack:
            x = block(x)
        return x


class Scaled(Own):
    """Adds what attention writes at half its size, which no module gives."""

    class Half(Block):
        def forward(self, hidden_states):
            x = hidden_states + 0.5 * self.heads(self.first(hidden_states))[0]
            return x + self.ffn(self.second(x))

    def __init__(self):
        super().__init__()
        self.stack = torch.nn.ModuleList([Scaled.Half(), Scaled.Half()])


class Thrice(Own):
    """Its blocks add three values to their stream."""

    class Doubled(Block):
        def forward(self, hidden_states):
            added = self.heads(self.first(hidden_states))[0]
            x = hidden_states + added
            return x + self.ffn(self.second(x)) + self.mix["o"](torch.ones_like(added))

    def __init__(self):
        super().__init__()
        self.stack = torch.nn.ModuleList([Thrice.Doubled(), Thrice.Doubled()])


PLACES = {
    "blocks": "stack",
    "attention": "heads",
    "o_proj": "mix.o",
    "mlp": "ffn",
    "norm1": "first",
    "norm2": "second",
    "qkv": "mix.qkv",
    "qkv_order": "parts",
    "embed": "words",
    "n_heads": 2,
}


def attached(model, paths=None):
    return accept(NNsight(model.eval()), tokenizer=tiny.tokenizer("gpt2"), paths=paths)


class TestPaths:
    @pytest.mark.parametrize("paths", [None, PLACES, {"blocks": "stack"}])
    def test_an_architecture_is_found_without_a_dictionary(self, paths):
        torch.manual_seed(0)
        model = Own()
        host = attached(model, paths)
        assert {role: host.places.roles[role] for role in PLACES} == PLACES
        assert (host.info.n_layers, host.info.n_heads, host.info.d_head) == (2, 2, 4)
        assert (host.info.block, host.info.causal) == ("pre_norm", True)
        assert host.hook_name(Site(1, "z")) == "stack.1.mix.o.input"
        batch = host.batches(tiny.samples(SHORT))[0]
        site = Site(1, "resid_post")
        assert_close(read(host, batch, site), model(**batch.inputs).detach())
        assert host.attention_weights(0).scale == 0.5
        assert host.input_values(batch).shape == (1, batch.valid.shape[1], 8)
        assert not any(module._forward_hooks for module in model.stack.modules())

    def test_one_that_is_not_found_is_told_what_there_is(self):
        start = (
            r"^where things are in Thrice \(no config\) was not found: block 'stack\.0' \(Doubled\) adds 3 "
            r"values to its stream, of which 1 come from attention's output projection"
        )
        with pytest.raises(ValueError, match=start) as caught:
            attached(Thrice())
        text = str(caught.value)
        assert "'stack' (2 x Doubled: first, second, mix, mix.qkv, mix.o, heads" in text
        assert 'attach(model, paths={"blocks": ..., "attention": ...' in text

    def test_what_no_module_gives_is_refused_as_such(self):
        start = r"^Scaled cannot be attached: block 'stack\.0' \(Half\) multiplies what attention adds by a"
        with pytest.raises(ValueError, match=start):
            attached(Scaled())
        # Given all that is needed, the laws judge it.
        with pytest.raises(ValueError, match=r"Scaled: its blocks add up in no known way"):
            attached(Scaled(), PLACES)

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"mlp": "gone"}, r"no module 'stack\.0\.gone' \(mlp: module whose output is what the MLP"),
            ({"blocks": "gone"}, r"Own has no list of blocks at 'gone'. Lists of blocks found: 's"),
            ({"heads": "x"}, r"paths has 'heads', which is no role; roles: blocks, "),
            ({"mlp": "second"}, r"Own: its blocks add up in no known way.*be paths=.*'mlp': 'second'"),
            ({"mlp": "heads"}, r"Own: its blocks add up in no known way"),
        ],
    )
    def test_a_wrong_dictionary(self, change, says):
        with pytest.raises(ValueError, match=says):
            attached(Own(), PLACES | change)

    def test_what_is_written_down_uses_the_same_words(self):
        for paths in KNOWN.values():
            assert set(paths) <= set(ROLES)

    def test_a_module_that_runs_twice(self):
        own = Own()
        own.stack[1] = own.stack[0]
        with pytest.raises(ValueError, match=r"layers share their weights \(one Block runs 2 times in"):
            attached(own)
        with pytest.raises(ValueError, match=r"ran module 'stack\.0.*' 2 times in one forward"):
            attached(own, PLACES)
