"""Property tests: few examples, for they run on every change, and no time limit for each, for the machine is shared."""

from hypothesis import settings

settings.register_profile("rayprep", max_examples=50, deadline=None)
settings.load_profile("rayprep")
