"""Tiny random models of every supported architecture, with tokenizers that have offsets.

Everything is built in code from a seed: no network, no weights. `hf_model` builds the same model
every time, so that one copy can be bridged and another kept as the oracle (a bridge rewrites the
module it is given).
"""

from __future__ import annotations

import atexit
import shutil
import string
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sa_plugin.data import Sample

ARCHITECTURES = ("gpt2", "neox", "llama", "gemma2", "qwen3", "bert")
# Counts positions from behind its padding's.
LATE_POSITIONS = "roberta"
PRE_NORM = ("gpt2", "neox", "llama", "qwen3")
BLOCK = {**dict.fromkeys(PRE_NORM, "pre_norm"), "gemma2": "post_norm", "bert": "post_ln"}
ADDS_SPECIAL_FIRST = ("llama", "gemma2", "bert")
N_LAYERS, D_MODEL, N_HEADS, D_HEAD, CONTEXT = 3, 32, 4, 8, 64

TEXTS = (
    "The cat sat on the mat.",
    "A much longer sentence about dogs, cats and the people who walk them home at night.",
    "Two  spaces\nand a new line",
    "naïve café 😀 ends here",
    "short",
    "Nobody walked the dog that sat beside the cat.",
)


def samples(texts: tuple[str, ...] = TEXTS) -> list[Sample]:
    return [Sample(f"s{i}", text, f"d{i}") for i, text in enumerate(texts)]


@cache
def scratch_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="sa_plugin_tiny_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def tokenizer_folder(architecture: str) -> Path:
    """A saved tokenizer: byte-level BPE without BOS, the same with BOS, or WordPiece."""
    from transformers import PreTrainedTokenizerFast

    folder = scratch_folder() / architecture
    makers = {"bert": _wordpiece, "roberta": _roberta_bpe}
    backend = makers[architecture]() if architecture in makers else _byte_level_bpe(architecture)
    if architecture == "roberta":
        names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
        names |= {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
    elif architecture == "bert":
        names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
        names |= {"unk_token": "[UNK]", "mask_token": "[MASK]"}
    else:
        names = {"bos_token": "<bos>", "eos_token": "<eos>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
    return folder


def tokenizer(architecture: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(tokenizer_folder(architecture))


def _byte_level_bpe(architecture: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<bos>", "<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    if architecture in ADDS_SPECIAL_FIRST:
        backend.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 0)]
        )
    return backend


def _roberta_bpe() -> Any:
    """Byte-level BPE that puts a token on either side, with the padding's id of RoBERTa."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return backend


def _wordpiece() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend = Tokenizer(models.WordPiece(_pieces(special), unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return backend


def _pieces(special: list[str]) -> dict[str, int]:
    """Written down, not trained: the trainer breaks ties in another way in every process."""
    words = {word.strip(string.punctuation).lower() for text in TEXTS for word in text.split()}
    short = sorted(word for word in words if 1 < len(word) <= 4 and word.isascii())
    letters = [*string.ascii_lowercase, *string.digits, *".,😀"]
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), *short]
    return {piece: k for k, piece in enumerate(pieces)}


def hf_model(architecture: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """The model in eval mode: the same weights for the same seed."""
    model = _build(architecture)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            is_gain = parameter.ndim == 1 and name.endswith("weight") and architecture != "gemma2"
            parameter.copy_(1 + noise if is_gain else noise)
    return model.to(dtype).eval()


def _build(architecture: str) -> Any:
    import transformers as hf

    vocab = len(tokenizer(architecture))
    rotary: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": D_MODEL,
        "intermediate_size": 48,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": N_HEADS,
        "max_position_embeddings": CONTEXT,
        "attn_implementation": "eager",
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    grouped = rotary | {"num_key_value_heads": 2, "head_dim": D_HEAD, "pad_token_id": None}
    if architecture == "gpt2":
        return hf.GPT2LMHeadModel(
            hf.GPT2Config(
                vocab_size=vocab,
                n_embd=D_MODEL,
                n_layer=N_LAYERS,
                n_head=N_HEADS,
                n_positions=CONTEXT,
                bos_token_id=0,
                eos_token_id=1,
                attn_implementation="eager",
            )
        )
    if architecture == "neox":
        return hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**rotary))
    if architecture == "llama":
        return hf.LlamaForCausalLM(hf.LlamaConfig(**grouped))
    if architecture == "gemma2":
        config = hf.Gemma2Config(**grouped, query_pre_attn_scalar=D_HEAD, sliding_window=16)
        return hf.Gemma2ForCausalLM(config)
    if architecture == "qwen3":
        return hf.Qwen3ForCausalLM(hf.Qwen3Config(**grouped))
    if architecture == "bert":
        config = hf.BertConfig(**{k: v for k, v in rotary.items() if "s_token" not in k})
        return hf.BertForMaskedLM(config)
    if architecture == "roberta":
        # As RoBERTa has it: two positions more than tokens, the padding's own and the one before it.
        own = {"max_position_embeddings": CONTEXT + 2, "pad_token_id": 1, "eos_token_id": 2}
        names = {"architectures": ["RobertaForMaskedLM"]}
        return hf.RobertaForMaskedLM(hf.RobertaConfig(**rotary | own | names))
    raise ValueError(f"architecture {architecture!r} is unknown: use one of {ARCHITECTURES}.")


def bridge(architecture: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A TransformerBridge round `hf_model(architecture, seed=seed, dtype=dtype)`."""
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(
        f"tiny-{architecture}",
        hf_model=hf_model(architecture, seed=seed, dtype=dtype),
        tokenizer=tokenizer(architecture),
        device="cpu",
        dtype=dtype,
    )


def host(architecture: str, *, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A checked host, found without the entry point, so that nothing need be installed."""
    from sa_transformer_lens import accept

    return accept(bridge(architecture, dtype=dtype), **options)


def nnsight_model(architecture: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A TransformersModel round `hf_model(architecture, seed=seed, dtype=dtype)`."""
    from nnsight import TransformersModel

    model = hf_model(architecture, seed=seed, dtype=dtype)
    with quiet_names():
        return TransformersModel(model, tokenizer=tokenizer(architecture))


@contextmanager
def quiet_names() -> Iterator[None]:
    """No warning that BERT has modules named `output`, which nnsight calls `E_output`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Module '.*' has a submodule named 'output'")
        yield


def nnsight_host(architecture: str, *, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A checked nnsight host, found without the entry point."""
    from sa_nnsight import accept

    return accept(nnsight_model(architecture, dtype=dtype), **options)


VISION = ("vit", "vit_classifier", "deit", "dinov2", "clip_vision")
IMAGE_SIZE, PATCH = (28, 42), 7
SQUARE = ("dinov2", "clip_vision")
N_SPECIAL = {name: 2 if name == "deit" else 1 for name in VISION}


def vision_size(name: str) -> tuple[int, int]:
    """Height and width of the input; DINOv2 and CLIP are square in transformers."""
    return (28, 28) if name in SQUARE else IMAGE_SIZE


def vision_model(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A vision model, or CLIP's text tower, in eval mode: the same weights for the same seed."""
    return fill(_build_vision(name), seed).to(dtype).eval()


def fill(model: Any, seed: int = 0) -> Any:
    """Random weights, gains round 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            is_gain = parameter.ndim == 1 and parameter_name.endswith("weight")
            parameter.copy_(1 + noise if is_gain else noise)
    return model


def _build_vision(name: str) -> Any:
    import transformers as hf

    shared: dict[str, Any] = {
        "hidden_size": D_MODEL,
        "intermediate_size": 48,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": N_HEADS,
        "attn_implementation": "eager",
    }
    vision = shared | {"image_size": IMAGE_SIZE, "patch_size": PATCH}
    square = vision | {"image_size": 28}
    if name == "vit":
        return hf.ViTModel(hf.ViTConfig(**vision))
    if name == "vit_classifier":
        return hf.ViTForImageClassification(hf.ViTConfig(**vision))
    if name == "deit":
        return hf.DeiTModel(hf.DeiTConfig(**vision), add_pooling_layer=False)
    if name == "dinov2":
        square.pop("intermediate_size")
        # Positions for another grid than the input's, so that resampling is tested too.
        return hf.Dinov2Model(hf.Dinov2Config(**square | {"image_size": 42}, mlp_ratio=2))
    if name == "clip_vision":
        return hf.CLIPVisionModel(hf.CLIPVisionConfig(**square))
    if name == "clip_text":
        config = hf.CLIPTextConfig(
            **shared,
            vocab_size=len(clip_tokenizer()),
            max_position_embeddings=128,
            bos_token_id=0,
            eos_token_id=1,
        )
        return hf.CLIPTextModel(config)
    raise ValueError(f"{name!r} is unknown: use one of {(*VISION, 'clip_text')}.")


def clip_tokenizer() -> Any:
    """CLIP's own tokenizer over bytes and one merge: it puts tokens before and behind a text."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    pieces = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters), "th"]
    vocabulary = {piece: k for k, piece in enumerate(pieces)}
    folder = scratch_folder() / "clip_text"
    CLIPTokenizer(vocab=vocabulary, merges=[("t", "h")]).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def vision_bridge(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A TransformerBridge round `vision_model(name)`, LayerScale folded."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    from sa_plugin.host import as_vit
    from sa_transformer_lens.towers import register

    register()
    model = vision_model(name, seed=seed, dtype=dtype)
    model = as_vit(model, 28) if name == "dinov2" else model
    return build_bridge_from_module(
        model,
        type(model).__name__,
        hf_config=model.config,
        model_name=f"tiny-{name}",
        tokenizer=clip_tokenizer() if name == "clip_text" else None,
    )


def vision_host(name: str, *, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A checked host of a vision model, its images squashed to the input."""
    from sa_plugin.host import Processor
    from sa_transformer_lens import accept

    options = {"processor": Processor(vision_size(name), PATCH)} | options
    return accept(vision_bridge(name, dtype=dtype), **options)


def nnsight_vision_host(
    name: str, *, dtype: torch.dtype = torch.float32, folded: bool = False, **options: Any
) -> Any:
    """A checked nnsight host of a vision model, or of CLIP's text tower.

    `folded` wraps the ViT that DINOv2 becomes for TransformerLens, instead of DINOv2 itself.
    """
    from nnsight import NNsight

    from sa_nnsight import accept
    from sa_plugin.host import Processor, as_vit

    model = vision_model(name, dtype=dtype)
    size = (42, 42) if name == "dinov2" and not folded else vision_size(name)
    text = {"tokenizer": clip_tokenizer()} if name == "clip_text" else {}
    own = text or {"processor": Processor(size, PATCH)}
    return accept(NNsight(as_vit(model, 28) if folded else model), **(own | options))


def images(sizes: tuple[tuple[int, int], ...] = ((40, 61), (28, 28), (90, 33))) -> list[Sample]:
    """Images of noise, one concept on a corner of each."""
    import numpy as np

    from sa_plugin.data import Image

    rng = np.random.default_rng(0)
    found = []
    for k, (height, width) in enumerate(sizes):
        mask = np.zeros((height, width), dtype=bool)
        mask[: height // 2, : width // 3] = True
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image(pixels, {"corner": mask})
        found.append(Sample(f"i{k}", "", f"d{k}", positive=frozenset({"corner"}), image=image))
    return found
