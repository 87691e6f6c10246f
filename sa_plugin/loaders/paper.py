"""The concepts of the paper's data sets (arXiv 2512.05038), as its authors' code names them.

A concept of Broden is `category::label`, because one word may be an object and a part. The rules
behind the choice are not published; these lists are.
"""

from __future__ import annotations


def _names(listed: str, category: str = "") -> tuple[str, ...]:
    return tuple(category + name for name in listed.split(", "))


PAPER_CONCEPTS: dict[str, tuple[str, ...]] = {
    "clevr": _names("blue, green, red, cube, cylinder, sphere"),
    "coco": _names(
        "accessory, animal, appliance, bench, book, bottle, bowl, bus, car, chair, couch, cup, dining "
        "table, electronic, food, furniture, indoor, kitchen, motorcycle, outdoor, person, pizza, "
        "potted plant, sports, train, truck, tv, umbrella, vehicle"
    ),
    "opensurfaces": _names(
        "brick, cardboard, carpet, ceramic, concrete, fabric, food, fur, glass, granite, hair, "
        "laminate, leather, metal, mirror, painted, paper, plastic-clear, plastic-opaque, rock, rubber, "
        "skin, tile, wallpaper, wicker, wood",
        "material::",
    ),
    "pascal": _names(
        "airplane, bicycle, bird, boat, body, book, building, bus, cap, car, cat, cup, dog, door, ear, "
        "engine, grass, hair, horse, leg, mirror, motorbike, mountain, painting, person, pottedplant, "
        "saddle, screen, sky, sofa, table, track, train, tvmonitor, wheel, wood",
        "object::",
    )
    + _names(
        "arm, bag, beak, bottle, box, cabinet, ceiling, chain wheel, chair, coach, curtain, eye, "
        "eyebrow, fabric, fence, floor, foot, ground, hand, handle bar, head, headlight, light, mouth, "
        "muzzle, neck, nose, paw, plant, plate, plaything, pole, pot, road, rock, rope, shelves, "
        "sidewalk, signboard, stern, tail, torso, tree, wall, water, windowpane, wing",
        "part::",
    ),
    "sarcasm": ("sarcasm",),
    "isarcasm": ("sarcastic",),
    "goemotions": _names(
        "confusion, joy, sadness, anger, love, caring, optimism, amusement, curiosity, disapproval, "
        "approval, annoyance, gratitude, admiration"
    ),
}
