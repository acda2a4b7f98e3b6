"""python -m bench.index: our engines beside the libraries that people would use instead, on the same vectors, in one run."""
