"""Tests mirror the packages. A package, because some distributions install one of this name and would win over it."""
