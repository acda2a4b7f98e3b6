"""Inverted lists of our own, as native code: `lists.cpp`, compiled by `library`, used by `lists`."""
