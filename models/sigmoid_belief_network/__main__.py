from models import sigmoid_belief_network
from models.command import main

main(sigmoid_belief_network)
