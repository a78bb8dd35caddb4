"""Losses: a file each, as functions of a network's outputs z: values, derivatives, divergences.

Those of an exponential family, whose parameters the outputs are, share one form (Martens 2020, section 9): with m(z)
the mean that the outputs stand for and m' the mean that it is compared with (the target's or the dense network's), the
gradient is m(z) - m', and the output Hessian depends on z alone, not on m':

    cross-entropy   m = softmax(z)      H = diag(m) - mm'         one class of K
    bce             m = sigmoid(z)      H = diag(m (1 - m))       K labels of 0 or 1, the outputs being logits
    mse             m = z               H = I                     K values; halved, so that H = I

Any other loss is a function of the user; it is differentiated, and its divergence is the halved squared error.
"""
