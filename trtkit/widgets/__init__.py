"""What people meet in a notebook: the wizard, the tuner, the explorer, the gallery and the dashboard.

A widget holds callbacks only: what it decides lives in a module that imports no ipywidgets, and what it does is one
call of the package. Importing this room imports nothing heavy.
"""
