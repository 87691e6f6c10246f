from common import *
import shutil, json
from pathlib import Path
import weights

src = weights.folder("minilm")
c = Path(f"{SCRATCH}/rel_cache")
shutil.rmtree(c, ignore_errors=True)
c.mkdir()
shutil.copytree(src, c / "minilm")
f = next(x for x in (c / "minilm").rglob("*") if x.suffix in (".safetensors", ".onnx", ".bin"))
print(f.name, f.stat().st_size)
b = bytearray(f.read_bytes())
n = len(b) // 2
for k in range(n, n + 400000):
    b[k] ^= 0x01
f.write_bytes(b)
try:
    print("same-size edit of weights -> folder() says", weights.folder("minilm", cache=c))
except Exception as e:
    print(type(e).__name__, e)
print("fetch() returns at once:", weights.fetch("minilm", cache=c))
cfg = c / "minilm" / "config.json"
t = cfg.read_text()
cfg.write_text(t.replace('"hidden_size": 384', '"hidden_size": 383'))
try:
    print("config edited same size ->", weights.folder("minilm", cache=c))
except Exception as e:
    print(type(e).__name__)
(c / "minilm" / "modeling_evil.py").write_text("print('x')")
try:
    print("extra file added ->", weights.folder("minilm", cache=c))
except Exception as e:
    print(type(e).__name__)
m = c / "minilm" / "manifest.json"
for bad in (
    "[]",
    '{"sha256":1}',
    "null",
    json.dumps({**json.loads(m.read_text()), "files": None}),
    b"\xff\xfe".decode("latin1"),
):
    m2 = m.read_text()
    m.write_text(bad, encoding="latin1")
    try:
        print("manifest", bad[:20], "->", weights.folder("minilm", cache=c))
    except Exception as e:
        print("manifest", repr(bad[:20]), "->", type(e).__name__, str(e)[:100])
    m.write_text(m2)
