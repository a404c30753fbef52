"""The experiment of "Super-Masks: Are They Good Initializations?" (2019), run with masktorch.

How one run flows through the files:

    data, download   the images                     networks       the two networks
    augmentation     uint8 batches to inputs        training       the loop every arm uses
    experiment       what each arm trains, and in which order
    results          one JSON file per arm run
    table, figures   drawn from those files alone   __main__       the command line
    reproduction     the page of docs/ that is written from the committed results
"""


class BenchmarkError(ValueError):
    """Something the user can mend; the message says what was expected, found, and what to do."""
