"""A conversation in the terminal: what was said, what fits, how it is typed, and what commands do."""
