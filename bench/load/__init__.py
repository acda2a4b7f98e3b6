"""python -m bench.load: open-loop load on a server, and what came of it. docs/load-testing.md says how to use it."""
