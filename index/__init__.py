"""Vectors on disk and in memory: bundles, slots, masks and search; knows nothing of users or RPCs."""
