"""A short hash of values, by which recipes and settings name inputs that are too long to repeat."""

import hashlib
import json
from typing import Any


def digest(value: Any) -> str:
    """16 hex digits of a value's JSON. What JSON does not have, such as a date of a table, counts as text."""
    return hashlib.blake2b(json.dumps(value, default=str).encode(), digest_size=8).hexdigest()
