"""Property tests measure no time: the machine may be busy."""

from hypothesis import settings

settings.register_profile("data", deadline=None)
settings.load_profile("data")
