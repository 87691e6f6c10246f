"""A model while it generates: what each step runs, what is watched of it and edited in it."""

from sa_plugin._face import face_room
from sa_plugin.generation.running import Follower, Generation, following, require_local

__all__ = ["Follower", "Generation", "following", "require_local"]

face_room(globals())
