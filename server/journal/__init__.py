"""What must not be lost: events and the catalogue, in one SQLite file per tenant."""
