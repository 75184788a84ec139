"""The entries registered with timm, their genomes, weights and cards."""
