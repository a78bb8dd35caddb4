"""Fine-tuning: the training loop, the choice of the best epoch, and gradual pruning between training steps."""
