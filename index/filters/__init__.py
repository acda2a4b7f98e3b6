"""Which items a query may return: filters as data, attribute columns on slots, evaluation, and cached masks."""
