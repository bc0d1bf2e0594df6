"""The container run's manifest, of which rayprep owns one field: `profile_cache.start`."""

import json

from rayprep.model.base import encodable
from rayprep.model.errors import BadRequest
from rayprep.model.snapshot import ProfileSnapshot


def merge_snapshot(text: str, source: str, snapshot: ProfileSnapshot) -> str:
    """The manifest's text with `profile_cache.start` set; every other field stays as it is, in its order.

    Raises:
        BadRequest: the text is not a JSON object, or its `profile_cache` is something else than an object.
    """
    try:
        return _merged(json.loads(text), source, snapshot)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"manifest {source} is not JSON: {error}", hint="it is left as it was") from None


def _merged(manifest: object, source: str, snapshot: ProfileSnapshot) -> str:
    if not isinstance(manifest, dict) or not isinstance(manifest.get("profile_cache", {}), dict):
        raise BadRequest(
            f"manifest {source}: it and its profile_cache must be JSON objects", hint="it is left as it was"
        )
    manifest.setdefault("profile_cache", {})["start"] = snapshot.model_dump(mode="json")
    merged = json.dumps(manifest, indent=2, ensure_ascii=False)
    if merged != encodable(merged):  # half a surrogate pair, which only an escape can hold
        merged = json.dumps(manifest, indent=2)
    return merged + "\n"
