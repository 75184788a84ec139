"""The tables and figures of the paper, and what one of them alone needs."""
