"""Networks from genomes, and what they cost."""
