"""Runnable models, a folder each: what the model is, its data, its exact answers, and its programs in both libraries.

`python -m models.NAME --lib numpyro --objective iwae --num-steps 500 --figure cone.png` fits one, with progress;
`--help` says what else it takes, and `python -m models` which there are. A folder has

- `__init__.py`: the docstring says what the model is and where it is from. Its functions are in NumPy: `data()`, the
  arguments of the programs as a tuple of arrays; `exact()`, the log evidence in nats, where it is known; and
  `picture(fit, ax)`, a picture of a `vi.Fit` in Axes of matplotlib. `RECIPES` has by name the ways to fit it, each a
  `models.recipe.Recipe` (model and guide, objectives, estimators, steps); the first is the usual one.
- `pyro.py` and `numpyro.py`: the programs, usually `model(*data)` and `guide(*data)`, as one writes them in
  the library.
- `__main__.py`: `main(...)` of `models.command`, which is the same for all.

What is imported of a folder loads neither torch nor jax; each library module loads its own alone.
"""
