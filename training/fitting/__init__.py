"""Towers from events: steps, epochs, early stop, checkpoints, several processes."""
