"""Samples for a run: the calibration and holdout samples of each stage, without outliers."""
