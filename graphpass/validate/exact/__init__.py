"""Each rewrite once more in exact arithmetic, where a right one is equal without any tolerance."""
