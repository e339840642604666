"""The first process: forks the children, watches them, restarts them, and lets none of them leave anything behind."""
