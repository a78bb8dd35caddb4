"""Trackers: where else a run's numbers go. One file each, found by its name in the configuration's ``track``.

A tracker's file has ``PACKAGE``, the distribution that it needs, and ``open(folder, run, settings)``, which returns a
``Tracker``.
"""
