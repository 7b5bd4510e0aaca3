from models import gflownet
from models.command import main

main(gflownet)
