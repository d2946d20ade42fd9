"""Which calibration, which layers: sweeps, sensitivities and the search for the fastest INT8 within a loss."""
