"""minimal: a mixed artefact (what a kill between the two writes of save_pretrained leaves) loads silently"""

from common import *
import shutil
from fake_host import FakeHost
from word_data import word_data

h = FakeHost()


def make(seed):
    d = word_data(60, seed=seed)
    return d, calibrate(h, d, fit(h, d, "prototype"))


(d0, a), (d1, b) = make(0), make(7)
a.save_pretrained(f"{SCRATCH}/rel_m")
b.save_pretrained(f"{SCRATCH}/rel_m2")
for old in Path(f"{SCRATCH}/rel_m").glob("tensors*"):
    old.unlink()
for new in Path(f"{SCRATCH}/rel_m2").glob("tensors*"):
    shutil.copy(new, f"{SCRATCH}/rel_m/{new.name}")  # = killed after save_file, before write_text
try:
    Detector.from_pretrained(f"{SCRATCH}/rel_m", host=h)
except Exception as e:
    print("refused:", type(e).__name__, str(e).replace(SCRATCH, ""))
    sys.exit()
m = Detector.from_pretrained(f"{SCRATCH}/rel_m", host=h)
print(
    "data hash says",
    m.data_hash == a.data_hash,
    "thresholds are those of b:",
    m.threshold == b.threshold,
    "of a:",
    m.threshold == a.threshold,
)
print("guard accepts b's train rows as unseen:", end=" ")
try:
    m.evaluate(d1.train, resampling=sa.Resampling(5))
    print("YES - leak")
except Exception as e:
    print("no,", str(e)[:100])
