"""Model folders of the paper's architectures, tiny and random, as `save_pretrained` writes them."""

import csv

import numpy as np
import tiny
import tiny_multimodal
import transformers as hf
from PIL import Image

SARCASTIC = ("great", "sure", "wow")
PLAIN = ("the", "cat", "sat", "on", "a", "mat", "near", "dog", "home", "night")


def model_folder(key, path):
    """A folder of the architecture behind `paper_KEY_*.toml`."""
    if key == "clip":
        text, vision = (tiny.vision_model(f"clip_{half}").config for half in ("text", "vision"))
        config = hf.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict())
        tiny.fill(hf.CLIPModel(config)).save_pretrained(path)
        tiny.clip_tokenizer().save_pretrained(path)
        crop = {"height": 28, "width": 28}
        hf.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=crop).save_pretrained(path)
    elif key in ("llama_vision", "llama_text"):
        tiny_multimodal.mllama().save_pretrained(path)
        tiny.tokenizer("llama").save_pretrained(path)
    else:
        name = {"gemma": "gemma2", "qwen": "qwen3"}[key]
        tiny.hf_model(name).save_pretrained(path)
        tiny.tokenizer(name).save_pretrained(path)
    return path


def write_rows(path, rows):
    with path.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows(rows)


def splits(n):
    return ["train" if k % 5 < 3 else "cal" if k % 5 == 3 else "test" for k in range(n)]


def sarcasm(root, n=60, seed=0):
    """Sarcasm in the format of the authors' code: half the texts have one or two marked words."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    meta, paragraphs, words = [], [], []
    for k in range(n):
        text = list(rng.choice(PLAIN, rng.integers(6, 11)))
        if k % 2:
            for at in rng.choice(len(text), 2, replace=False):
                text[at] = str(rng.choice(SARCASTIC))
        (root / f"{k}.txt").write_text(" ".join(text))
        meta.append([f"{k}.txt", splits(n)[k], k % 2])
        paragraphs.append([k + 1, k % 2])
        words += [[k + 1, word, int(word in SARCASTIC)] for word in text]
    write_rows(root / "metadata.csv", [["text_path", "split", "sarcasm"], *meta])
    write_rows(root / "paragraph_level_labels.csv", [["paragraph_id", "sarcasm"], *paragraphs])
    write_rows(root / "word_level_labels.csv", [["paragraph_id", "word", "sarcasm"], *words])
    return root


def clevr(root, n=60, seed=0):
    """CLEVR in the format of the authors' code: one object a picture, masks by colour."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    paint, rows = {"blue": (40, 60, 220), "red": (220, 40, 40), "green": (40, 180, 50)}, []
    for k in range(n):
        colour = list(paint)[k % 3]
        pixels = np.full((28, 28, 3), 110, dtype=np.uint8)
        pixels[0, 0] = k
        top, left = rng.integers(1, 16, 2)
        pixels[top : top + 10, left : left + 10] = paint[colour]
        Image.fromarray(pixels).save(root / f"{k}.png")
        flags = [int(colour == name) for name in paint]
        rows.append([f"{k}.png", splits(n)[k], f"{colour} cube", *flags])
    write_rows(root / "metadata.csv", [["image_path", "split", "class", *paint], *rows])
    return root
