"""A claim on a host's GPUs: an actor that holds all of them in Ray's books, so that no other job is given them."""

import os


class GpuClaim:
    """Placed once the GPUs are free; killed when the host is done with them."""

    def visible(self) -> str:
        """CUDA_VISIBLE_DEVICES as Ray has set it for whoever holds these GPUs.

        In the order of their numbers: Ray names them in any order, and slices are dealt to neighbours.
        """
        names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        return ",".join(sorted(names, key=int) if all(name.isdecimal() for name in names) else names)
