"""How fast candidates are scored, and networks trained and run."""
