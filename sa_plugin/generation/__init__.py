"""A model while it generates: what each step runs, what is watched of it and edited in it."""

from sa_plugin._face import face_room
from sa_plugin.generation.monitor import Monitor, watch
from sa_plugin.generation.running import Follower, Generation, following, require_local
from sa_plugin.generation.steer import SteeredTexts, Steering, steer
from sa_plugin.generation.steer_curves import steering_curves
from sa_plugin.generation.steer_result import SteeringCurves
from sa_plugin.generation.watching import Hit, OtherTokensWarning

__all__ = [
    "Follower",
    "Generation",
    "Hit",
    "Monitor",
    "OtherTokensWarning",
    "SteeredTexts",
    "Steering",
    "SteeringCurves",
    "following",
    "require_local",
    "steer",
    "steering_curves",
    "watch",
]

face_room(globals())
