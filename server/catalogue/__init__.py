"""The items that can be recommended: a view of the journal."""
