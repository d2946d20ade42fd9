"""The documentation site: pages from docstrings, records and executed notebooks, built by Zensical."""
