"""The load tester's tools. They know the service by its contract only."""
