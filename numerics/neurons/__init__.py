"""Do soft labels need fewer neurons?  The bounds of Mandal, Lin and Srikant, the margin they speak of, and experiments beside them.

In reading order: ``bounds`` (how many neurons suffice, on paper), ``margin`` (the class margin of the limiting kernel, bracketed),
``data`` (XOR with a gap, a line with a gap, digits), ``two_layer`` and ``deep`` (networks and how they are trained), ``widths``
(the width at which a curve of errors falls below a level), ``experiments`` (what is run).  Pictures and tables are made by
``plots.neurons`` and ``cli.neurons``.

S. Mandal, X. Lin and R. Srikant, "A theoretical analysis of soft-label vs hard-label training in neural networks", Proceedings of
Machine Learning Research 283, 1078-1089 (2025), called "the paper" below.
"""
