"""Level 2: each rewrite on its own, cut out of the graph."""
