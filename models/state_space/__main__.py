from models import state_space
from models.command import main

main(state_space)
