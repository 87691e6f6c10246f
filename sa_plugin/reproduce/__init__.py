"""One command a cell of the paper's matrix: its tables and figures beside the published numbers.

`sa-plugin reproduce CONFIG`, or `reproduce(read_config(name), folder)`. What is run is in a TOML
file (`config`), what it depends on names its stages (`store`), what it shows is said with intervals
(`findings`), and what was published stands beside it, marked where it contradicts itself
(`published`). Nothing is downloaded.
"""

from sa_plugin.reproduce.config import CellConfig, configurations, read_config
from sa_plugin.reproduce.published import published, published_of
from sa_plugin.reproduce.run import Cell, reproduce

__all__ = [
    "Cell",
    "CellConfig",
    "configurations",
    "published",
    "published_of",
    "read_config",
    "reproduce",
]
