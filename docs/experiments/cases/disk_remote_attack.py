from common import *
import os
from pathlib import Path
from sa_nnsight.jobs import Journal
from sa_nnsight import faults
from safetensors.torch import save_file

W = Path(f"{SCRATCH}/rel_journal")
import shutil

shutil.rmtree(W, ignore_errors=True)
j = Journal(W)
key = "a" * 64
j.store(key, [{"scores": torch.ones(3, 2)}])
f = next(W.glob("*.safetensors"))
print("good", j.result(key))


def t(n, fn):
    try:
        fn()
        print(n, "->", str(j.result(key))[:100])
    except BaseException as e:
        print(n, "->", type(e).__name__, str(e)[:100])


whole = f.read_bytes()
t("values changed", lambda: save_file({"number": torch.tensor(1), '0/"scores"': torch.full((3, 2), 7.0)}, f))
t("shape changed", lambda: save_file({"number": torch.tensor(1), '0/"scores"': torch.full((9, 9), 7.0)}, f))
t("NaN", lambda: save_file({"number": torch.tensor(1), '0/"scores"': torch.full((3, 2), float("nan"))}, f))
t(
    "dtype int",
    lambda: save_file({"number": torch.tensor(1), '0/"scores"': torch.ones(3, 2, dtype=torch.int8)}, f),
)
t("number 5", lambda: save_file({"number": torch.tensor(5), '0/"scores"': torch.ones(3, 2)}, f))
t("number missing", lambda: save_file({'0/"scores"': torch.ones(3, 2)}, f))
t("number 10**12", lambda: save_file({"number": torch.tensor(0), '0/"scores"': torch.ones(3, 2)}, f))
t("truncated", lambda: f.write_bytes(whole[:-5]))
t("empty", lambda: f.write_bytes(b""))
f.unlink()


def jj(n, b):
    (W / f"{key[:32]}.json").write_bytes(b)
    try:
        print("job note", n, "->", j.job(key))
    except BaseException as e:
        print("job note", n, "->", type(e).__name__, str(e)[:80])


jj("half written", b'{"job_id": "ab')
jj("empty (killed in write_text)", b"")
jj("list", b"[]")
jj("no key", b"{}")
jj("path", b'{"job_id":"../../other"}')
for bad in ("\0", "x"):
    try:
        Journal(bad if bad != "x" else "/proc/x")
        print("journal", repr(bad), "ok")
    except BaseException as e:
        print("journal folder", repr(bad), type(e).__name__, str(e)[:80])
# keys in text
os.environ["NDIF_API_KEY"] = "sk-SECRET-123"
import urllib.parse, traceback

for n, e in {
    "plain": RuntimeError("bad key sk-SECRET-123"),
    "in dict arg": RuntimeError({"headers": {"ndif-api-key": "sk-SECRET-123"}}),
    "bytes arg": RuntimeError(b"ndif-api-key: sk-SECRET-123"),
    "url-quoted": RuntimeError("key=" + urllib.parse.quote("sk-SECRET-123/")),
    "notes": None,
    "cause": None,
    "attribute": None,
    "exception group": ExceptionGroup("g", [RuntimeError("sk-SECRET-123")]),
    "upper": RuntimeError("SK-SECRET-123"),
}.items():
    if n == "notes":
        e = RuntimeError("x")
        e.add_note("key sk-SECRET-123")
    if n == "cause":
        e = RuntimeError("x")
        e.__cause__ = ValueError("sk-SECRET-123")
    if n == "attribute":
        import httpx

        r = httpx.Request("POST", "http://h/", headers={"ndif-api-key": "sk-SECRET-123"})
        e = httpx.ConnectError("no", request=r)
    try:
        raise faults.explain_fault(e) from e
    except Exception as x:
        text = "".join(traceback.format_exception(x))
        print(
            "key leak via",
            n,
            ":",
            "SECRET" in text.upper() and "sk-secret-123" in text.lower(),
            "| pickled/vars:",
            "SECRET" in repr([vars(l) for l in (e,)]),
        )
