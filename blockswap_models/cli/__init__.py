"""The command `blockswap`."""
