"""One run, from the job to the outcome; ``run.py`` reads top to bottom.

job.py          the configuration with everything that it names, opened
checks/         what is checked before any work: settings, task, outliers, accuracy, memory format
planning/       the plan: every choice of a run with its reason
estimates/      the memory and time that a run will need
sampling/       calibration and holdout samples of each stage, and the validation samples
stages/         the stages of pruning: setup, step, acceptance, state, and the loop over them
finetuning/     training, the choice of the best epoch, and gradual pruning
measurement.py  metrics and sizes on the test samples
outcome.py      the outcome, put together from its parts
score.py        one step to each sparsity, predicted and measured
files/          the run's folder, its saved state and its results
"""
