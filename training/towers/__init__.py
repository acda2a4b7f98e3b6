"""The two towers as torch modules, and their losses: what is trained, and what is exported into the bundle."""
