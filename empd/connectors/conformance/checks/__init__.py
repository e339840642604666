"""The checks: each proves one thing, or raises Failed or NotClaimed, and says what it saw."""
