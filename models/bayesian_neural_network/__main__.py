from models import bayesian_neural_network
from models.command import main

main(bayesian_neural_network)
