"""tuner(): ranges and layers of INT8, with a search and the code of the export."""
