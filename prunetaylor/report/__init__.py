"""Results as text: one JSON object, or tables for a terminal."""
