"""Concept vectors in other tools' formats: sign, scale, hook point and layer as the receiver has them."""

import numpy as np
import pytest
import tiny
import torch
from animal_data import animal_texts
from torch.testing import assert_close

from sa_plugin.concepts import ConceptBank, fit, neuronpedia_vector, push_vector, write_control_vector
from sa_plugin.scores import score

SPREAD = 5.0


def some_bank(hook_point="resid_post", scoring="dot", layers=(1, 2)):
    """Random vectors of tiny models, under a normaliser that is not the identity."""
    generator = torch.Generator().manual_seed(0)
    pairs = [(concept, layer) for concept in ("animal", "food") for layer in layers]
    drawn = torch.randn(len(pairs) + len(layers), tiny.D_MODEL, generator=generator)
    vectors = {pair: 3 * vector for pair, vector in zip(pairs, drawn, strict=False)}
    normaliser = {layer: (drawn[-k - 1], SPREAD + layer) for k, layer in enumerate(layers)}
    return ConceptBank.from_vectors(vectors, hook_point=hook_point, scoring=scoring, normaliser=normaliser)


def scores_when_added(bank, layer, block, vector, strength):
    """Dot scores at a layer's hook point of a tiny Llama, before and after a block's output is pushed."""
    model, ids = tiny.hf_model("llama"), torch.tensor([[0, 5, 9, 12]])
    site, seen = model.model.layers[layer], []

    def after(_, __, out):
        seen.append(out)

    def before(_, args):
        seen.append(args[0])

    for s in (0.0, strength):
        pushed = model.model.layers[block].register_forward_hook(lambda _, __, out, s=s: out + s * vector)
        post = bank.hook_point == "resid_post"
        looked = site.register_forward_hook(after) if post else site.register_forward_pre_hook(before)
        with torch.no_grad():
            model(ids)
        pushed.remove()
        looked.remove()
    return [bank.token.score(bank.index(layer), h[0]) for h in seen]


def test_a_push_raises_the_score_by_its_strength():
    bank = some_bank()
    before, after = scores_when_added(bank, 2, 2, push_vector(bank, "food", 2), 2.5)
    assert_close(after[:, 1] - before[:, 1], torch.full((4,), 2.5), atol=1e-4, rtol=0)
    assert push_vector(bank, "food", 2) @ bank.vector("food", 2) > 0
    # Of a cosine the projection rises; the score is on the same side.
    cosine = some_bank(scoring="cosine")
    assert_close(push_vector(cosine, "food", 2), push_vector(bank, "food", 2))


@pytest.mark.parametrize(("hook_point", "layer", "place"), [("resid_post", 1, 1), ("resid_pre", 2, 1)])
def test_a_control_vector_file_is_what_llama_cpp_adds_behind_the_block_it_names(
    tmp_path, hook_point, layer, place
):
    gguf = pytest.importorskip("gguf")
    bank = some_bank(hook_point)
    path = write_control_vector(bank, "animal", layer, tmp_path / "animal.gguf", model_type="llama")
    reader = gguf.GGUFReader(path)
    said = {
        name: bytes(reader.get_field(name).parts[-1]).decode()
        for name in ("general.architecture", "controlvector.model_hint")
    }
    assert said == {"general.architecture": "controlvector", "controlvector.model_hint": "llama"}
    (tensor,) = reader.tensors
    assert tensor.name == f"direction.{place}"
    assert (tensor.data.dtype, tensor.data.shape) == (np.float32, (tiny.D_MODEL,))
    # llama.cpp adds scale * direction.N to what block N puts out; repeng's layer N is the same.
    vector = torch.from_numpy(tensor.data.copy())
    before, after = scores_when_added(bank, layer, place, vector, 3.0)
    assert_close(after[:, 0] - before[:, 0], torch.full((4,), 3.0), atol=1e-4, rtol=0)


def test_neuronpedias_payload_has_its_names_and_the_scores_of_the_top_passages():
    host, data = tiny.host("llama"), animal_texts()
    bank = fit(host, data, "lda", layers=[1])
    table = score(host, data, bank)
    passages = table.passages("animal", 1, top=3)
    made = neuronpedia_vector(bank, "animal", 1, model_id="tiny", strength=4, passages=passages)
    assert {k: v for k, v in made.new.items() if k != "vector"} == {
        "label": "animal",
        "model_id": "tiny",
        "layer_num": 1,
        "hook_type": "hook_resid_post",
        "default_steer_strength": 4,
    }
    assert made.new["vector"] == push_vector(bank, "animal", 1).tolist()
    assert len(made.passages) == 3
    highest = [max(one["values"]) for one in made.passages]
    assert highest == sorted(highest, reverse=True)
    assert highest[0] == float(table.scores.max())
    row = int(table.scores[:, 0, 0].argmax())
    first = made.passages[0]
    assert first["tokens"][int(np.argmax(first["values"]))] == table.tokens.text(row)


def test_neuronpedias_own_client_sends_that_payload(monkeypatch):
    pytest.importorskip("neuronpedia", reason="neuronpedia is not installed")
    from neuronpedia.np_vector import NPVector
    from neuronpedia.requests.activation_request import Activation
    from neuronpedia.requests.base_request import NPRequest

    bank, sent = some_bank("resid_pre"), []
    monkeypatch.setenv("NEURONPEDIA_API_KEY", "none")

    def answer(self, **request):
        sent.append(request["json"])
        back = {"modelId": "gpt2-small", "source": "2-x", "index": "7", "label": "l", "hookName": "h"}
        vector = {**back, "values": request["json"]["vector"], "defaultSteerStrength": 1.0}
        return {"vector": vector, "url": "u"}

    monkeypatch.setattr(NPRequest, "send_request", answer)
    made = neuronpedia_vector(bank, "food", 2, model_id="gpt2-small", passages=[(["a", "b"], [0.5, -1])])
    vector = NPVector.new(**made.new)
    assert sent[0]["hookType"] == "hook_resid_pre"
    assert (sent[0]["layerNumber"], sent[0]["vectorLabel"]) == (2, "food")
    assert vector.values == push_vector(bank, "food", 2).tolist()
    where = {"modelId": vector.model_id, "source": vector.source, "index": int(vector.index)}
    activation = Activation(**where, **made.passages[0])
    assert (activation.tokens, activation.values) == (["a", "b"], [0.5, -1.0])


def test_what_a_receiver_cannot_take_is_refused(tmp_path):
    bank = some_bank()
    with pytest.raises(ValueError, match=r"would be direction\.0, and llama\.cpp steers blocks from 1 on"):
        write_control_vector(some_bank("resid_pre"), "food", 1, tmp_path / "v.gguf", model_type="llama")
    for make in (
        lambda: neuronpedia_vector(some_bank("mlp_out"), "food", 1, model_id="m"),
        lambda: write_control_vector(some_bank("mlp_out"), "food", 1, tmp_path / "v", model_type="llama"),
    ):
        with pytest.raises(ValueError, match="live at 'mlp_out': fit with hook_point='resid_post'"):
            make()
    with pytest.raises(ValueError, match="passage 0 has 2 tokens and 1 scores"):
        neuronpedia_vector(bank, "food", 1, model_id="m", passages=[(["a", "b"], [1.0])])
    with pytest.raises(ValueError, match=r"the bank has layers \[1, 2\]: name one"):
        bank.to_direction_set()
    with pytest.raises(ValueError, match="scores by cosine, which divides by the length"):
        some_bank(scoring="cosine").to_direction_set(1)
    with pytest.raises(ValueError, match="the bank has no layer 7"):
        push_vector(bank, "food", 7)
    from dataclasses import replace

    rewritten = replace(bank, origin=replace(bank.origin, processing="fold_ln"))
    with pytest.raises(ValueError, match="fitted with 'fold_ln': its vectors live in a residual stream"):
        push_vector(rewritten, "food", 1)
