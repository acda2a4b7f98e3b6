"""Ranked, permitted candidates."""
