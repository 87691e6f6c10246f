"""The notebook on nnsight with its one line changed, `REMOTE = True`."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "notebooks" / "03_nnsight_remote.ipynb"
# Elsewhere the client asks a hub for the name that it was given.
NO_HUB = """
import nnsight.modeling.huggingface as client
from sa_plugin.host import find_folder
client._ID_CACHE[str(find_folder("smollm2"))] = str(find_folder("smollm2"))
"""


def test_it_runs_on_the_server(tmp_path, monkeypatch):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    local = code[0].source
    code[0].source = local.replace("REMOTE = False", "REMOTE = True") + NO_HUB
    assert local + NO_HUB != code[0].source
    monkeypatch.setenv("SA_PLUGIN_SMALL", "1")
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "".join(output.get("text", "") for cell in code for output in cell.outputs)
    assert "requests" in said, said
    assert list((tmp_path / "journal").iterdir())
