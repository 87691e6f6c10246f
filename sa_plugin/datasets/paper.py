"""The concepts of the paper's data sets (arXiv 2512.05038), as its authors' code names them.

A label of Broden is `category::label`, because one word may be an object and a part. The rules
behind the choice are not published; these lists are.
"""

CLEVR = ("blue", "green", "red", "cube", "cylinder", "sphere")

COCO = (
    "accessory", "animal", "appliance", "bench", "book", "bottle", "bowl", "bus", "car", "chair",
    "couch", "cup", "dining table", "electronic", "food", "furniture", "indoor", "kitchen",
    "motorcycle", "outdoor", "person", "pizza", "potted plant", "sports", "train", "truck", "tv",
    "umbrella", "vehicle",
)  # fmt: skip

OPENSURFACES = tuple(f"material::{name}" for name in (
    "brick", "cardboard", "carpet", "ceramic", "concrete", "fabric", "food", "fur", "glass",
    "granite", "hair", "laminate", "leather", "metal", "mirror", "painted", "paper",
    "plastic-clear", "plastic-opaque", "rock", "rubber", "skin", "tile", "wallpaper", "wicker",
    "wood",
))  # fmt: skip

PASCAL = tuple(f"object::{name}" for name in (
    "airplane", "bicycle", "bird", "boat", "body", "book", "building", "bus", "cap", "car", "cat",
    "cup", "dog", "door", "ear", "engine", "grass", "hair", "horse", "leg", "mirror", "motorbike",
    "mountain", "painting", "person", "pottedplant", "saddle", "screen", "sky", "sofa", "table",
    "track", "train", "tvmonitor", "wheel", "wood",
)) + tuple(f"part::{name}" for name in (
    "arm", "bag", "beak", "bottle", "box", "cabinet", "ceiling", "chain wheel", "chair", "coach",
    "curtain", "eye", "eyebrow", "fabric", "fence", "floor", "foot", "ground", "hand",
    "handle bar", "head", "headlight", "light", "mouth", "muzzle", "neck", "nose", "paw", "plant",
    "plate", "plaything", "pole", "pot", "road", "rock", "rope", "shelves", "sidewalk",
    "signboard", "stern", "tail", "torso", "tree", "wall", "water", "windowpane", "wing",
))  # fmt: skip

SARCASM = ("sarcasm",)
ISARCASM = ("sarcastic",)

GOEMOTIONS = (
    "confusion", "joy", "sadness", "anger", "love", "caring", "optimism", "amusement", "curiosity",
    "disapproval", "approval", "annoyance", "gratitude", "admiration",
)  # fmt: skip
