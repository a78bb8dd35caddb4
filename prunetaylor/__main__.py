"""``python -m prunetaylor`` is the command ``prunetaylor``."""

from prunetaylor.cli.main import main

if __name__ == "__main__":  # processes that are spawned import this module again
    main()
