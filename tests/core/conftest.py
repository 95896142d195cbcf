"""Property tests that run the same examples every time."""

from hypothesis import settings

settings.register_profile("core", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("core")
