"""What several runs say together on the page: laws over size, training, pooled effects, and models compared."""
