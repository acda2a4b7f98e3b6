"""What a fresh vector is worth: real events replayed in time order, with user vectors and new items that are late."""
