"""`python -m training refresh`: from a running server's journal to its next live release, in one command."""
