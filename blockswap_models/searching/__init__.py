"""The search: spaces, costs, scores, strategies and records."""
