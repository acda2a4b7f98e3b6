"""Offline: interactions -> towers -> bundle -> evaluation. Run as `python -m training`."""
