"""Trackers send a run's numbers elsewhere. Each is one file, found by its name in the configuration's ``track``.

A tracker's file has ``PACKAGE``, the distribution that it needs, and ``open(folder, run, settings)``, which returns a
``Tracker``.
"""
