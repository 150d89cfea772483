"""The words of a command line before Hydra parses them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from itertools import pairwise

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from pegasus_lightning.utils.errors import UserError

NAME = r"""(?:"[^"]*"|'[^']*'|[^][{}()'"$\\,]+)"""  # an entry of a list


def check_typed(arguments: Sequence[str]) -> None:
    """Raise UserError for words that no parser could understand: bytes that are not UTF-8, a list cut at a space."""
    for text, following in pairwise([*arguments, ""]):
        if not text.isprintable() and any("\udc80" <= character <= "\udcff" for character in text):
            shown = text.encode(errors="surrogateescape").decode(errors="replace")
            raise UserError(f"'{shown}' holds bytes that are not UTF-8: rename the file or folder.")
        if text.count("[") > text.count("]") and "]" in following and "=" not in following:
            raise UserError(f"A list with a space in it needs quotes: '{text} {following}'.")


def quote_path(override: str) -> str:
    """Return `init_from=PATH` quoted for Hydra, which would parse the commas and `=` in a run's name."""
    key, _, value = override.partition("=")
    if key != "init_from" or value[:1] in ("", "'", '"', "[") or not os.path.exists(os.path.expanduser(value)):
        return override
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def quote_classes(override: str) -> str:
    """Return the override with those names of classes quoted that Hydra takes for something else: [1e3,true,马]."""
    key, equals, value = override.partition("=")
    if key.lstrip("+") != "data.classes":
        return override

    def quote(match: re.Match[str]) -> str:
        return f"[{re.sub(NAME, quote_one, match[1])}]"

    def quote_one(match: re.Match[str]) -> str:
        name = match[0].strip()
        return match[0] if _is_text(name) else match[0].replace(name, json.dumps(name, ensure_ascii=False))

    return key + equals + re.sub(rf"\[({NAME}(?:,{NAME})*)\]", quote, value)


def _is_text(name: str) -> bool:
    """Return whether Hydra's grammar reads a name as it is written."""
    if name[:1] in "'\"":
        return True
    try:
        return str(OverridesParser.create().parse_override(f"name={name}").value()) == name
    except HydraException:
        return False
