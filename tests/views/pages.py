"""The data of a page, as its script reads it."""

from __future__ import annotations

import base64
import json
import re
import zlib
from typing import Any


def data_of(html: str) -> dict[str, Any]:
    """The data of the page of a step, which is compressed, or of a run."""
    [(kind, text)] = re.findall(r'<script type="([^"]*)" id="data">(.*?)</script>', html, re.DOTALL)
    return json.loads(text if kind == "application/json" else zlib.decompress(base64.b64decode(text)))  # type: ignore[no-any-return]
