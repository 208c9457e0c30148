"""What is found: order parameters of a chain and all that follows from them.

``observables`` says what can be read off a stage: of the law of fresh logits (``population``) and of training samples (``training``
in theory; both are ``samples``, as are those of experiments).  Averages are taken by ``gaussian``, ``crossings`` and
``quadrature``; ``errors`` says how far off they are.  ``solution`` holds the order parameters (``state``) and the stages.
"""
