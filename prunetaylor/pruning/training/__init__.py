"""Training under masks: the loop, its optimizer, distillation, and divergence."""
