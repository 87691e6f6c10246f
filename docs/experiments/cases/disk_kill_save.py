"""kill -9 in the middle of save_pretrained over an existing artefact: is a mixture read as good?"""

import json, subprocess, sys, time, os, signal, random, shutil

CHILD = """
from common import *
import sys, time
from pathlib import Path
from fake_host import FakeHost
from word_data import word_data
from sa_plugin import calibrate, fit, score
host=FakeHost()
a=[]
for seed in (0,7):
    data=word_data(600,seed=seed); bank=fit(host,data,"prototype"); a.append(calibrate(host,data,bank,scores=score(host,data,bank)))
for d,n in zip(a,"AB"): d.save_pretrained(f"{SCRATCH}/rel_kill/{n}")
print("ready",flush=True)
k=0
while True:
    a[k%2].save_pretrained(f"{SCRATCH}/rel_kill/C"); k+=1
"""
from common import *
from fake_host import FakeHost
import collections

shutil.rmtree(f"{SCRATCH}/rel_kill", ignore_errors=True)
os.makedirs(f"{SCRATCH}/rel_kill")
rng = random.Random(0)
count = collections.Counter()
host = FakeHost()
p = subprocess.Popen(
    [sys.executable, "-c", CHILD],
    cwd=Path(__file__).resolve().parent,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
)
p.stdout.readline()


def files(n):
    record = (Path(f"{SCRATCH}/rel_kill") / n / "artefact.json").read_bytes()
    name = json.loads(record)["tensors"]["file"]
    return record, (Path(f"{SCRATCH}/rel_kill") / n / name).read_bytes()


A, B = files("A"), files("B")
print("A==B?", A[0] == B[0], A[1] == B[1], len(A[0]), len(A[1]))
# freeze the writer at random moments with SIGSTOP: what is on disk then is what a kill -9 leaves
for n in range(300):
    time.sleep(rng.random() * 0.02)
    os.kill(p.pid, signal.SIGSTOP)
    time.sleep(0.002)
    try:
        j, t = files("C")
    except FileNotFoundError:
        count["missing file"] += 1
        os.kill(p.pid, signal.SIGCONT)
        continue
    tag = (
        ("A" if j == A[0] else "B" if j == B[0] else "partial")
        + "/"
        + ("A" if t == A[1] else "B" if t == B[1] else "partial")
    )
    w = Path(f"{SCRATCH}/rel_kill/D")
    shutil.rmtree(w, ignore_errors=True)
    w.mkdir()
    (w / "artefact.json").write_bytes(j)
    (w / json.loads(j)["tensors"]["file"]).write_bytes(t)
    os.kill(p.pid, signal.SIGCONT)
    try:
        Detector.from_pretrained(w, host=host)
        r = "LOADED"
    except Exception as e:
        r = type(e).__name__
    count[f"json {tag.split('/')[0]}, tensors {tag.split('/')[1]} -> {r}"] += 1
p.kill()
p.wait()
for k, v in count.most_common():
    print(v, k)
