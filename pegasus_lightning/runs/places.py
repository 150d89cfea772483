"""Where results go."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def title(settings: dict[str, Any], content: list[Any]) -> str:
    """`<pairs>-<mixing>-<search>-s<seed>-<8 hex of the content>`: the name of a folder of results."""
    code = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
    pegasus = settings["pegasus"]
    return f"{pegasus['pairs']}-{pegasus['mixing']}-{settings['search']['method']}-s{settings['seed']}-{code}"
