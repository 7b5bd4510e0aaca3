"""What all other layers are made of: errors, arrays with named axes, distributions, and what a run offers."""
