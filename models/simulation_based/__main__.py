from models import simulation_based
from models.command import main

main(simulation_based)
