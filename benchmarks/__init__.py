"""Measurements of the package, and the tables and figures of the paper; each script is run as a module."""
