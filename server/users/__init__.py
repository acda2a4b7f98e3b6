"""People: their histories and vectors, views of the journal."""
