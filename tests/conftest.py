"""For all tests: properties may take the time that a busy machine needs."""

from hypothesis import settings

settings.register_profile("flockllm", deadline=None)
settings.load_profile("flockllm")
