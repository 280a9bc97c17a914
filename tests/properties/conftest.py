"""The examples of the property tests are the same in every run; another seed of the tests draws others."""

from hypothesis import settings

from tests.seeds import SHIFT

settings.register_profile("steady", deadline=None, derandomize=not SHIFT)
settings.load_profile("steady")
