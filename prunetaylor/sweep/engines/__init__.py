"""Where trials run: one file an engine, found by its name.

An engine has ``Options`` (a ``Section``, what ``engine:`` may say besides the name) and ``run(crew, watch)``, which
starts workers, calls ``watch`` a few times a second, and comes back when no worker has anything left to do.
"""
