"""What the built wheel must be, checked in an environment that holds nothing else.

Run with the project's environment: `python tests/wheel_law.py`. It builds the wheel, reads its
contents, installs it with one extra, a host's, into a fresh environment, and checks there that
importing `sa_plugin` imports neither torch nor a host, that no other host came along, that `attach`
works on a tiny random GPT-2 (of TransformerLens), and that README's example runs on sixty passages
with the weights that `make weights` fetched; on nnsight with its first line in nnsight's words. In an
editable install the repository lies on the path and hides such faults.

`--extra` names the host; `--steps` picks some of contents, imports, attach, readme; `--env DIR` keeps
the environment for a next run. CI runs it for `transformer-lens`, `make test-wheel` for both.
"""

import argparse
import re
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from environments import ROOT, call

STEPS = ("contents", "imports", "attach", "readme")
# The extra, the package it brings, and the one it must not bring.
HOSTS = {"transformer-lens": ("transformer_lens", "nnsight"), "nnsight": ("nnsight", "transformer_lens")}

IMPORTS = """
import importlib.util, pathlib, sys
import sa_plugin
home = pathlib.Path(sa_plugin.__file__).resolve()
assert home.is_relative_to(pathlib.Path(sys.prefix).resolve()), f"not the wheel's: {home}"
loaded = {"torch", "transformer_lens", "nnsight", "transformers"} & set(sys.modules)
assert not loaded, f"importing sa_plugin imported {sorted(loaded)}"
wanted, other = sys.argv[1:]
assert importlib.util.find_spec(wanted) is not None, f"{wanted} did not come with its extra"
assert importlib.util.find_spec(other) is None, f"{other} came with the extra of {wanted}"
assert importlib.util.find_spec("adapters") is None, "a package named adapters is installed"
import sa_transformer_lens
assert "transformer_lens" not in sys.modules, "the adapter imported its host before it was asked"
import sa_nnsight, sa_nnsight.trace_ops
assert sa_nnsight.accept(object()) is None
import sa_interp_engine
assert sa_interp_engine.accept(object()) is None
print(f"sa_plugin from {home.parent}, no host imported, {other} absent")
"""

ATTACH = """
import pathlib, sys, tempfile
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformer_lens.model_bridge import TransformerBridge
import sa_plugin

words = ["<|endoftext|>", "the", "cat", "sat", "on", "a", "mat"]
raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
raw.pre_tokenizer = pre_tokenizers.Whitespace()
end = words[0]
folder = pathlib.Path(tempfile.mkdtemp(dir=sys.argv[1]))
PreTrainedTokenizerFast(
    tokenizer_object=raw, bos_token=end, eos_token=end, pad_token=end, unk_token=end
).save_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
torch.manual_seed(0)
config = GPT2Config(vocab_size=len(words), n_positions=32, n_embd=32, n_layer=2, n_head=2)
model = GPT2LMHeadModel(config).eval()
bridge = TransformerBridge.boot_transformers(
    "gpt2", hf_model=model, tokenizer=tokenizer, device="cpu"
)
host = sa_plugin.attach(bridge)
print(type(host).__module__, "->", host.info)
assert "sa_nnsight" in sys.modules, "attach did not ask the adapter of nnsight"
assert "nnsight" not in sys.modules
assert not hasattr(object, "save"), "nnsight gave every object a method"
"""


# What stands in README's example for the line that makes a host, on nnsight.
ON_NNSIGHT = """
from sa_nnsight.host import load_model
from sa_plugin.host import find_folder

model, options = load_model(find_folder("smollm2"))
host = sa.attach(model, **options)
"""


def build(into: Path) -> Path:
    """The wheel, built with the hatchling that constraints.txt pins."""
    call(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(into), cwd=ROOT)
    (wheel,) = into.glob("*.whl")
    return wheel


def check_contents(wheel: Path) -> None:
    """The wheel holds every file of the packages and nothing else: no tests, no docs/experiments."""
    found = zipfile.ZipFile(wheel).namelist()
    members = {name for name in found if ".dist-info/" not in name}
    wanted = package_files()
    law(members == wanted, f"missing {sorted(wanted - members)}, not wanted {sorted(members - wanted)}")
    data = sorted(name for name in members if not name.endswith(".py"))
    law("sa_plugin/py.typed" in data, "sa_plugin/py.typed is missing")
    law("sa_plugin/loaders/supersense.jsonl.gz" in data, "the embedded data set is missing")
    print(f"{wheel.name}: {len(members)} members, of them no code {data}")


def package_files() -> set[str]:
    """Every file of the core and of the adapters, by its path in the wheel."""
    packages = [ROOT / "sa_plugin", *(path.parent for path in ROOT.glob("adapters/*/__init__.py"))]
    files = [path for package in packages for path in package.rglob("*") if path.is_file()]
    shipped = [path for path in files if "__pycache__" not in path.parts]
    return {path.relative_to(ROOT).as_posix().removeprefix("adapters/") for path in shipped}


def readme_example(extra: str) -> str:
    """README's example on sixty passages, by the host of an extra.

    Raises:
        SystemExit: README has no such example any more.
    """
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    short = example.replace("subset(240)", "subset(60)")
    law(short != example, "README's example takes no subset(240)")
    if extra == "nnsight":
        own = re.sub(r"^from sa_transformer_lens.*\n", "", short, flags=re.MULTILINE)
        own, changed = re.subn(r"^host = sa\.attach\(.*$", ON_NNSIGHT.strip(), own, flags=re.MULTILINE)
        law(changed == 1, "README's example makes no host in one line")
        return own
    return short


def install(wheel: Path, env: Path, extra: str) -> Path:
    """A fresh environment with the wheel and one extra alone."""
    python = env / "bin" / "python"
    if not python.exists():
        call(sys.executable, "-m", "venv", str(env))
    pip = [str(python), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt")]
    call(*pip, "pip", "setuptools")
    call(*pip, "--no-build-isolation", f"{wheel}[{extra}]")
    call(*pip, "--no-deps", "--force-reinstall", str(wheel))
    return python


def law(holds: bool, breach: str) -> None:
    """Stop with the breach unless the law holds."""
    if not holds:
        raise SystemExit(f"wheel law broken: {breach}")


def main(argv: Sequence[str] | None = None) -> None:
    """Build, then run the steps asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--extra", choices=tuple(HOSTS), default="transformer-lens")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--env", type=Path, default=None, help="kept; default: made and removed")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        wheel = build(scratch / "dist")
        if "contents" in args.steps:
            check_contents(wheel)
        if set(args.steps) == {"contents"}:
            return
        python = str(install(wheel, (args.env or scratch / "env").resolve(), args.extra))
        if "imports" in args.steps:
            call(python, "-I", "-c", IMPORTS, *HOSTS[args.extra], cwd=scratch)
        if "attach" in args.steps and args.extra == "transformer-lens":
            call(python, "-I", "-c", ATTACH, str(scratch), cwd=scratch)
        if "readme" in args.steps:
            # From a file: nnsight reads the source of what traces.
            (scratch / "example.py").write_text(readme_example(args.extra), encoding="utf-8")
            call(python, "-I", "example.py", cwd=scratch)


if __name__ == "__main__":
    main()
