"""The experiment of "Super-Masks: Are They Good Initializations?" (2019), run with masktorch.

experiment   one run: configuration, data, networks, arms, training, results
studies      which runs answer which question, as data
speed        what masks cost, side by side with plain training
pages        what came out: templates, tables and figures
"""


class BenchmarkError(ValueError):
    """Something the user can mend; the message says what was expected, found, and what to do."""
