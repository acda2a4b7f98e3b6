"""python -m bench.world: a made world of any size to put load on: a bundle, and a journal of people with histories."""
