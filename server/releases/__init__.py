"""From bundles to live releases: paired towers and index."""
