"""Evaluation: greedy answers from the runtime, scored and timed, one setting against another."""
