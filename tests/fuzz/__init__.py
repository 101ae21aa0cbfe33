"""Coverage-guided fuzzing of both readers; CONTRIBUTING.md has the commands, docs/security.md the results."""
