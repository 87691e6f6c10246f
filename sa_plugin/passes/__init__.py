"""One walk over a model: rows laid out before, what is kept after."""

from sa_plugin.passes.layout import TokenTable
from sa_plugin.passes.run import LostLabelWarning, allocate, compact, lay_out, walk

__all__ = ["LostLabelWarning", "TokenTable", "allocate", "compact", "lay_out", "walk"]
