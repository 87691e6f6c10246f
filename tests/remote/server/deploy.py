"""Places one checkpoint folder on the running server; run by the server's own Python.

The size is given because ndif 0.1.2 would else ask nnsight 0.8.1 for it in words it refuses.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ndif.cli.lib.deploy import deploy

folder, address = sys.argv[1:3]
named = {"repo_id": folder, "revision": None, "task": "text-generation"}
spec = {
    "checkpoint": folder,
    "model_key": "nnsight.modeling.transformers.TransformersModel:" + json.dumps(named),
    "dtype": "float32",
    "size_bytes": sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")),
    "padding_bias": 0,
    "actor_class": None,
}
if len(sys.argv) > 3:
    spec["execution_timeout_seconds"] = float(sys.argv[3])
print(json.dumps(deploy([spec], ray_address=address), default=str))
