"""The type of Ray's handles: what they give back for a method is known to Ray at run time alone."""

from typing import Any

Handle = Any
"""Of an actor, or of what a generator method yields."""
