"""Files of torch.save, read without running code: archive, pickle, descriptions of tensors, tensors."""
