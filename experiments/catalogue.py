"""Write the page of methods anew, from the tables that the command line reads.

python -m experiments.catalogue
"""

from experiments.engine.catalogue import PAGE, page
from experiments.entry import entry_point


@entry_point
def main() -> None:
    """Write the page."""
    PAGE.write_text(page())
    print(f"{PAGE} is written")


if __name__ == "__main__":
    main()
