"""`empd demo`: a daemon of its own, real work, two kills, and a count of what was lost."""
