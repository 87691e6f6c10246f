"""Vision on pictures I draw myself: circles, squares, triangles with masks; ViT through TL and nnsight."""

import time

from PIL import Image, ImageDraw
from common import SCRATCH, np, sa, tryit
from sa_plugin.host import find_folder as folder

rng = np.random.default_rng(0)


def draw(kinds):
    im = Image.new("RGB", (224, 224), tuple(rng.integers(180, 255, 3).tolist()))
    d = ImageDraw.Draw(im)
    masks = {}
    for k in kinds:
        x, y = rng.integers(20, 150, 2)
        s = int(rng.integers(35, 60))
        col = tuple(rng.integers(0, 150, 3).tolist())
        m = Image.new("L", (224, 224))
        dm = ImageDraw.Draw(m)
        for dd, c in ((d, col), (dm, 255)):
            if k == "circle":
                dd.ellipse([x, y, x + s, y + s], fill=c)
            if k == "square":
                dd.rectangle([x, y, x + s, y + s], fill=c)
            if k == "triangle":
                dd.polygon([(x, y + s), (x + s, y + s), (x + s // 2, y)], fill=c)
        masks[k] = np.array(m) > 0
    return im, masks


imgs, masks = [], []
for i in range(90):
    ks = [["circle"], ["square"], ["triangle"], ["circle", "square"], ["triangle", "square"], []][i % 6]
    im, m = draw(ks)
    imgs.append(im)
    masks.append(m)


data = tryit("from_masks PIL", lambda: sa.ConceptData.from_masks(imgs, masks, name="drawn"))
if data is None:
    data = tryit(
        "from_masks numpy",
        lambda: sa.ConceptData.from_masks([np.array(i) for i in imgs], masks, name="drawn"),
    )
tryit(
    "wrong mask size",
    lambda: sa.ConceptData.from_masks(
        [np.array(i) for i in imgs], [{k: v[:100] for k, v in m.items()} for m in masks]
    ),
)
from sa_transformer_lens.host import load_bridge

b = load_bridge(folder("vit"))
host = sa.attach(b, progress=False)
print(host)


def full(host):
    t = time.time()
    bank = sa.fit(host, data, "separator", layers=[3, 7, 11])
    sc = sa.score(host, data, bank)
    det = sa.calibrate(host, data, bank, scores=sc)
    print(det)
    print(det.evaluate(data.test, scores=sc, resampling=sa.Resampling(100)))
    print(time.time() - t)
    print(det.evaluate_tokens(data.test, scores=sc, resampling=sa.Resampling(50)))
    s = data.test.samples[0]
    print(det.find(s)[:2])
    tryit("find on a PIL image", lambda: det.find(imgs[0])[:1])
    tryit("find on np image", lambda: det.find(np.array(imgs[0]))[:1])
    led = tryit("ledger", lambda: sa.head_ledger(host, data, det, scores=sc, resampling=sa.Resampling(20)))
    s = next(s for s in data.test.samples if det.find(s))
    c = det.find(s)[0].concept
    g = sa.objective("superactivator", detector=det, concept=c, sample=s, host=host)
    a = tryit("attribute", lambda: sa.attribute(host, g, s, method="integrated_gradients"))
    open(f"{SCRATCH}/attr_vit.html", "w").write(a._repr_html_())
    return det


det = full(host)


def nn():
    from nnsight import NNsight
    import transformers as tr

    m = tr.AutoModel.from_pretrained(folder("vit"), attn_implementation="eager").eval()
    h = sa.attach(NNsight(m), processor=tr.AutoImageProcessor.from_pretrained(folder("vit")))
    print(h)
    bank = sa.fit(h, data, "separator", layers=[3, 7, 11])
    sc = sa.score(h, data, bank)
    return sa.calibrate(h, data, bank, scores=sc)


print(tryit("ViT nnsight AutoModel", nn))


def nn2():
    from nnsight import NNsight
    import transformers as tr

    m = tr.AutoModelForImageClassification.from_pretrained(folder("vit")).eval()
    h = sa.attach(NNsight(m))
    return h


tryit("ViT nnsight, no processor given", nn2)
