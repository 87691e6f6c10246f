"""Every snippet of docs/models.md runs, in order, on tiny models, and says what the page says."""

import re
from importlib.metadata import EntryPoint
from pathlib import Path

import paper_models
import pytest
import tiny
import tiny_multimodal
import torch

from sa_plugin.host import protocol as hosting

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"


@pytest.fixture
def registered(monkeypatch):
    points = [
        EntryPoint(name, f"sa_{name}:accept", hosting.ADAPTERS) for name in ("nnsight", "transformer_lens")
    ]
    monkeypatch.setattr(hosting, "entry_points", lambda group: points)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_snippet_runs(tmp_path, registered, capsys):
    names = {
        "qwen": tiny_multimodal.qwen3_embedding(),
        "qwen_again": tiny_multimodal.qwen3_embedding(),
        "llava": tiny_multimodal.llava(),
        "mllama": tiny_multimodal.mllama(),
        "mllama_again": tiny_multimodal.mllama(),
        "gemma": tiny.hf_model("gemma2"),
        "tokenizer": tiny.tokenizer("llama"),
        "processor": tiny_multimodal.processor(),
        "picture": paper_models.picture(),
    }
    for k, snippet in enumerate(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)):
        # nnsight reads a trace's source from the file that the code says it is in.
        file = tmp_path / f"snippet_{k}.py"
        file.write_text(snippet)
        with torch.no_grad():
            exec(compile(snippet, str(file), "exec"), names)
    said = capsys.readouterr().out
    for part in (
        "True",
        "staged",
        "global_transformer.layers.0.output",
        "3 5",
        "layers.2.output layers.1.output",
        "(0, 7, 15, 22, 30, 38, 41) (2,)",
    ):
        assert part in said, said
    assert names["features"] == 1
    assert names["entry"] is not None
