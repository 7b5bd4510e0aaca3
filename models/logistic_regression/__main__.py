from models import logistic_regression
from models.command import main

main(logistic_regression)
