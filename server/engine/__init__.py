"""The one thread that computes vectors and searches, with a greedy batcher in front."""
