"""How an objective program is run: estimators are chosen, a dry run makes the plan, sites get their values."""
