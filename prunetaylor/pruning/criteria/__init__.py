"""Criteria: one file each, found by its name.

A criterion is a function ``score(model: TaylorModel | None, network, masks, generator) -> {parameter name: Tensor}``
that gives every prunable weight the estimated increase of the error if it goes (the removed ones' scores are not
looked at).

A solver that chooses the weights and moves the others at once has ``solve(model, network, masks, removed, generator) ->
Step`` instead, with ``removed`` the number of weights that are gone after it. Both state beside it, as literals
(``registry.facts`` reads them without importing the file; the documentation and ``prunetaylor config`` show them):

    SUMMARY      the method in half a sentence, for users
    COST         what it computes and how that grows
    USE          when to choose it
    NEEDS        "nothing", "samples" or "labels": what it cannot do without
    REPAIR       what ``prune.repair: auto`` means for it
    FIRST_ORDER  whether it goes by the gradient too, where the first-order term is kept
    DAMPED       whether it solves with a curvature that ``prune.damping`` is added to
    MAX_STAGE_FRACTION
                 the share of the weights left that one stage of ``prune.stages: auto`` removes, at most; None: all at
                 once

and ``memory(sizes: Sizes) -> [Phase]`` says what is held while it scores or solves (see ``prunetaylor.taylor.memory``).
"""
