"""The weights of the zoo, and the recipe that makes them."""
