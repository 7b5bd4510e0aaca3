from models import transition_paths
from models.command import main

main(transition_paths)
