"""Hypothesis profiles: `ci` by default, `long` where TEST_LONG is set (`make test LONG=1`)."""

import os

from hypothesis import HealthCheck, settings

# No deadline: a shared machine's pauses are not findings. The blob lets anyone replay a failure.
settings.register_profile("ci", deadline=None, derandomize=False, print_blob=True)
settings.register_profile(
    "long",
    parent=settings.get_profile("ci"),
    max_examples=5000,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("long" if os.environ.get("TEST_LONG") else "ci")
