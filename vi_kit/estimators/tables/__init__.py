"""By family of distributions: weak derivatives, samplers, and rules of quadrature."""
