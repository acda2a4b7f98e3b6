"""How many calls are let in, so that those are answered in time."""
