"""The cost algebra: terms, what nonlinear functions make of them, and how sites are contracted."""
