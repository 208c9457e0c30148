"""Pictures of labelled results, as computed or as read back from a file; nothing is solved.

``style`` is the look of all of them; ``curves`` and ``heat_map`` draw any observable, ``double_descent`` the main figure, of which
``plan`` says what has to be computed, and ``neurons`` panels on how many neurons soft and hard labels need.
"""
