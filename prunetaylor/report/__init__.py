"""Results as people and programs read them: JSON, tables in a terminal, HTML pages, CI formats and trackers.

The room imports core/ only, and gets plain values.
"""
