"""Compiled building blocks: elementary functions, small linear algebra, and the templates that code generation completes."""
