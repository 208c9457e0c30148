"""Command lines: what they share (``command``, ``flags``, ``report``), and the commands of one screen."""
