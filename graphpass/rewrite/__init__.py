"""How a graph is rewritten: patterns, rules, the driver and the one surgeon."""
