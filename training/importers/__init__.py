"""Importers: a source's rows -> the canonical data set of training/data/dataset.py, bad rows counted and kept aside."""
