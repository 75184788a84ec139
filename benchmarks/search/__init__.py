"""How far the search can be trusted: its agreement, its strategies, and kills."""
