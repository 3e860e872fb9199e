"""For all tests: properties may take the time that a busy machine needs, and Ctrl-C works."""

import signal

from hypothesis import settings

settings.register_profile("flockllm", deadline=None)
settings.load_profile("flockllm")

signal.signal(signal.SIGINT, signal.default_int_handler)
"""A shell starts what runs in its background with SIGINT ignored, and so would its children be."""
