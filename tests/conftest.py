"""What holds for every test."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Tests never time anything: a busy machine is no failure. On CI hypothesis's own profile, the parent, draws the same
# examples every time.
settings.register_profile("hubel", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hubel")
