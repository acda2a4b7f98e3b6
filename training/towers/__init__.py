"""The two towers as torch modules: what is trained, and what is exported into the bundle."""
