"""Importers: a source's rows -> the canonical data set of training/dataset.py, bad rows counted and kept aside."""
