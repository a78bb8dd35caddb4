"""How the kept weights make up for the removed ones: least squares, batch norm, fine-tuning."""
