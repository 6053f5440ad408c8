"""Building, installing and pinning: what is done for a release, and its tests."""
