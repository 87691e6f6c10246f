"""Small random models and tokenizers for the trial scripts, built in code from a seed."""

import os, sys, warnings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch, transformers as hf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

torch.set_num_threads(1)
CORPUS = [
    "the cat sat on the mat and the dog ran home to eat bread with soup",
    "a cow and a dog walked over the blue river house",
    "naïve café über straße mañana 猫が好き кошка सुबह",
    "Hello world. We sang all night! She paid $5 for soup & bread.",
] * 3


def fast(backend, **names):
    return hf.PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def bytelevel(bos=False, extra=(), prefix=False):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<bos>", "<eos>", *extra],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if bos:
        t.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    names = {"bos_token": "<bos>", "eos_token": "<eos>"}
    if extra:
        names["additional_special_tokens"] = list(extra)
    return fast(t, **names)


def unigram(bos=True, byte_fallback=False):
    t = Tokenizer(models.Unigram())
    t.normalizer = normalizers.Sequence(
        [
            normalizers.Nmt(),
            normalizers.NFKC(),
            normalizers.Replace(__import__("tokenizers").Regex(" {2,}"), " "),
        ]
    )
    t.pre_tokenizer = pre_tokenizers.Metaspace()
    t.decoder = decoders.Metaspace()
    t.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=300, special_tokens=["<bos>", "<eos>", "<unk>"], unk_token="<unk>", show_progress=False
        ),
    )
    if bos:
        t.post_processor = processors.TemplateProcessing(
            single="<bos> $A <eos>", special_tokens=[("<bos>", 0), ("<eos>", 1)]
        )
    return fast(t, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>")


def randomise(model, seed=0, scale=0.2):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for n, p in model.named_parameters():
            x = torch.randn(p.shape, generator=g) * scale
            p.copy_(1 + x if p.ndim == 1 and n.endswith("weight") else x)
    return model.eval()


def llama(tok, layers=3, d=32, heads=4, kv=2, ctx=128, **more):
    c = hf.LlamaConfig(
        vocab_size=len(tok),
        hidden_size=d,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        max_position_embeddings=ctx,
        attn_implementation="eager",
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
        **more,
    )
    return randomise(hf.LlamaForCausalLM(c))


def attach(model, tok, **k):
    import sa_plugin as sa
    from nnsight import NNsight

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sa.attach(NNsight(model), tokenizer=tok, progress=False, **k)


def animals(n=40, seed=0, words=None, **k):
    """Word salads labelled animal/food."""
    import numpy as np, sa_plugin as sa
    from sa_plugin.data import Splits

    rng = np.random.default_rng(seed)
    W = words or ["cat", "dog", "cow", "bread", "soup", "sat", "ran", "house", "river", "blue", "over", "the"]
    rows = [["the", *rng.choice(W, rng.integers(5, 12))] for _ in range(n)]
    rows = [[str(w) for w in r] for r in rows]
    lab = [
        ["animal" if w in ("cat", "dog", "cow") else "food" if w in ("bread", "soup") else None for w in r]
        for r in rows
    ]
    return sa.ConceptData.from_words(rows, lab, splits=Splits(seed=1), **k)


def verdict(ok, *said):
    print(*said)
    print("RIGHT" if ok else "WRONG")
    sys.exit(0 if ok else 1)
