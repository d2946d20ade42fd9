"""Notebook widgets: the export wizard, the calibration tuner, the dashboard, the gallery and the engine explorer.

State and decisions are in modules that import no ipywidgets, and every action is one call of the package. Importing
this package imports nothing heavy.
"""
