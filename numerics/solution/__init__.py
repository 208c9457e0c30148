"""What is found: order parameters of a chain and all that follows from them.

``solution`` says what an observable is, ``population`` has the law of fresh logits, ``training`` that of training samples;
averages are taken by ``quadrature`` and ``crossings``, and ``errors`` says how far off they are.
"""
