"""Going on from a bundle with what is new, and how far that moves what was known."""
