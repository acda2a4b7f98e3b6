"""The online service: events in, user state, user vector, search, ranked candidates out."""
